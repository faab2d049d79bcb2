"""The threads that read adapters into the host cache, out of the steps' way, and how far each of them is."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from loraplex_server.engine.adapter_arena import PackedAdapter
from loraplex_server.engine.host_cache import HostCache


class HostPlace(Protocol):
    """Where a reader puts an adapter. The weights may be copied to a slot as far as they have been `checked`."""

    def begin(self, num_elements: int, ranks: dict[tuple[int, str], int]) -> Tensor:
        """A flat host tensor [elements] to read an adapter of these ranks into: an attempt, which ends with the read
        or with `give_up`."""
        ...

    def checked(self, num_elements: int) -> None:
        """So many elements from the start on are there and sound; they do not change in this attempt."""
        ...

    def give_up(self) -> None:
        """What this attempt has read is no good: nothing of it will be served, and nobody writes to it any more."""
        ...


AdapterReader = Callable[[str, HostPlace], None]
"""Reads the adapter of a digest; when it returns, the last attempt is sound as a whole. Runs in a loader thread.

Raises a LoraplexError or an OSError when the package is not sound. Whatever else it raises says nothing of the package.
"""

_LOW_PRIORITY = 15  # of a thread, as `nice` counts


@dataclass(slots=True, eq=False)
class HostWeights:
    """An adapter in host memory; one that is being read is sound only so far."""

    packed: PackedAdapter
    num_checked: int = 0  # elements from the start; only ever more. Written by the thread that reads

    @classmethod
    def of(cls, packed: PackedAdapter) -> HostWeights:
        """All of it is there."""
        return cls(packed, packed.flat.numel())

    @property
    def num_elements(self) -> int:
        return self.packed.flat.numel()


class Reading:
    """One adapter's way from disk into the host cache. Implements `HostPlace` for the thread that reads.

    The engine's thread may look at any time, and sees either no attempt or the present one.
    """

    def __init__(self, digest: str, cache: HostCache) -> None:
        self._digest = digest
        self._cache = cache
        self._weights: HostWeights | None = None
        self._result: Future[float] = Future()

    @property
    def weights(self) -> HostWeights | None:
        """Of the present attempt, held in the host cache; None before its size is known, and when it was given up."""
        return self._weights

    @property
    def is_over(self) -> bool:
        return self._result.done()

    @property
    def seconds(self) -> float:
        """That a read without an error took, once it is over; the hold on `weights` is now the caller's."""
        return self._result.result()

    @property
    def error(self) -> BaseException | None:
        """What the reader raised, once the read is over."""
        return self._result.exception()

    def begin(self, num_elements: int, ranks: dict[tuple[int, str], int]) -> Tensor:
        assert self._weights is None, "the former attempt was not given up"
        flat = self._cache.reserve(self._digest, num_elements)
        self._weights = HostWeights(PackedAdapter(self._digest, flat, ranks))
        return flat

    def checked(self, num_elements: int) -> None:
        assert self._weights is not None, "nothing was begun"
        self._weights.num_checked = num_elements

    def give_up(self) -> None:
        if self._weights is not None:
            self._weights = None
            self._cache.release(self._digest)

    def run(self, reader: AdapterReader) -> None:
        """In the loader thread, from first to last."""
        started = time.monotonic()
        try:
            reader(self._digest, self)
            weights = self._weights
            assert weights is not None, "the reader has read nothing"
            weights.num_checked = weights.num_elements
            self._cache.complete(weights.packed)
        except BaseException as error:
            try:
                self.give_up()
            finally:  # whoever waits is told, whatever happens
                self._result.set_exception(error)
        else:
            self._result.set_result(time.monotonic() - started)


class AdapterLoader:
    """A few adapters are read at a time, each as early as it can be."""

    def __init__(
        self, reader: AdapterReader, cache: HostCache, *, max_reads: int, low_priority: bool
    ) -> None:
        """`low_priority`: the steps run on the same processors, and the threads get what they leave."""
        self.max_reads = max_reads  # at once
        self._reader = reader
        self._cache = cache
        self._threads = ThreadPoolExecutor(
            max_workers=max_reads,
            thread_name_prefix="adapter-loader",
            initializer=_lower_priority if low_priority else None,
        )

    def read(self, digest: str) -> Reading:
        """Begin to read an adapter that is not in the cache. What is read stays held there."""
        reading = Reading(digest, self._cache)
        self._threads.submit(reading.run, self._reader)
        return reading

    def close(self) -> None:
        """Stop after the reads under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _lower_priority() -> None:
    """Of this thread alone, which only Linux allows."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)
