"""The thread that reads adapters into the host cache, one after another, out of the steps' way."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from loraplex_server.engine.adapter_arena import PackedAdapter
from loraplex_server.engine.host_cache import HostCache

Allocate = Callable[[int], Tensor]
"""Number of elements -> a flat host tensor [elements] to read into. Called again, it takes back what it gave."""

AdapterReader = Callable[[str, Allocate], PackedAdapter]
"""Digest -> weights, in the tensor that `Allocate` gave last. Runs in the loader thread.

Raises a LoraplexError or an OSError when it cannot.
"""

_LOW_PRIORITY = 15  # of a thread, as `nice` counts


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """What a read gave: an adapter that is held in the host cache."""

    packed: PackedAdapter
    read_seconds: float


class AdapterLoader:
    """Adapters are read one at a time, so that each is there as early as it can be."""

    def __init__(self, reader: AdapterReader, cache: HostCache, *, low_priority: bool) -> None:
        """`low_priority`: the steps run on the same processors, and the thread gets what they leave."""
        self._reader = reader
        self._cache = cache
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="adapter-loader",
            initializer=_lower_priority if low_priority else None,
        )

    def read(self, digest: str) -> Future[LoadedAdapter]:
        """Begin to read an adapter that is not in the cache. What is read stays held there."""
        return self._thread.submit(self._read, digest)

    def close(self) -> None:
        """Stop after the read under way."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _read(self, digest: str) -> LoadedAdapter:
        started = time.monotonic()
        is_reserved = False

        def allocate(num_elements: int) -> Tensor:
            nonlocal is_reserved
            if is_reserved:
                self._cache.release(digest)
            is_reserved = True
            return self._cache.reserve(digest, num_elements)

        try:
            packed = self._reader(digest, allocate)
        except BaseException:
            if is_reserved:
                self._cache.release(digest)
            raise
        self._cache.complete(packed)
        return LoadedAdapter(packed, time.monotonic() - started)


def _lower_priority() -> None:
    """Of this thread alone, which only Linux allows."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)
