"""Which adapters are resident, which are on their way, and who uses them.

Reading and packing an adapter happens in a thread; publishing it into a slot happens between steps, in the engine
thread, which owns everything else here. A waiting adapter delays only the sequences that name it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from loraplex_adapters.errors import AdapterTooLargeError, AdapterUnavailableError, LoraplexError
from loraplex_server.engine.adapter_arena import Extent, PackedAdapter

AdapterReader = Callable[[str], PackedAdapter]
"""Digest -> packed weights; runs in the loader thread and raises a LoraplexError when it cannot."""


class AdapterMemory(Protocol):
    """Where the weights of resident adapters are; see `AdapterArena` and `GpuAdapterArena`."""

    @property
    def capacity(self) -> int: ...

    def allocate(self, length: int) -> Extent | None: ...

    def free(self, extent: Extent) -> None: ...

    def place(self, slot: int, extent: Extent, packed: PackedAdapter) -> None: ...


@dataclass(slots=True)
class _Resident:
    slot: int
    extent: Extent
    leases: int = 0


@dataclass(slots=True)
class ResidencyEvents:
    """What happened since the last call of `take_events`."""

    load_seconds: list[float] = field(default_factory=list)
    evictions: int = 0


class AdapterResidency:
    """Adapter slots with least-recently-used eviction; an adapter in use is never evicted."""

    def __init__(self, num_slots: int, arena: AdapterMemory, reader: AdapterReader) -> None:
        self._arena = arena
        self._reader = reader
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._resident: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first
        self._loading: dict[str, Future[tuple[PackedAdapter, float]]] = {}
        self._forgotten: set[str] = set()  # resident, in use, and to be evicted after that
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-loader")
        self._events = ResidencyEvents()

    def prefetch(self, digest: str) -> None:
        """Begin loading unless the adapter is resident or on its way."""
        self._forgotten.discard(digest)
        if digest not in self._resident and digest not in self._loading:
            self._loading[digest] = self._loader.submit(self._read_timed, digest)

    def cancel_prefetch(self, digest: str) -> None:
        """Nobody waits for the adapter any more: drop what was read of it, or will have been."""
        loading = self._loading.pop(digest, None)
        if loading is not None:
            loading.cancel()  # a read under way goes on, and its result goes nowhere

    def acquire(self, digest: str) -> int | None:
        """Lease the adapter for one running sequence and return its slot.

        None while it loads or while every slot that could be freed for it is in use.
        Raises AdapterUnavailableError when its package cannot be read, AdapterTooLargeError when it is larger than
        the arena; a later request tries again.
        """
        resident = self._resident.get(digest)
        if resident is None:
            resident = self._activate(digest)
            if resident is None:
                return None
        self._resident.move_to_end(digest)
        resident.leases += 1
        return resident.slot

    def release(self, digest: str) -> None:
        """Give one lease back."""
        resident = self._resident[digest]
        resident.leases -= 1
        if resident.leases == 0 and digest in self._forgotten:
            self._evict(digest)

    def forget(self, digest: str) -> None:
        """No new sequence will name this digest: evict it as soon as it is idle."""
        resident = self._resident.get(digest)
        if resident is None:
            self.cancel_prefetch(digest)
        elif resident.leases == 0:
            self._evict(digest)
        else:
            self._forgotten.add(digest)

    def is_loading(self, digest: str) -> bool:
        """True while the package is being read; False once it waits for nothing but a slot."""
        loading = self._loading.get(digest)
        return loading is not None and not loading.done()

    @property
    def resident_digests(self) -> list[str]:
        """Least recently used first."""
        return list(self._resident)

    @property
    def num_loading(self) -> int:
        """Adapters being read or waiting for a slot."""
        return len(self._loading)

    @property
    def num_leases(self) -> int:
        """Leases held by running sequences."""
        return sum(resident.leases for resident in self._resident.values())

    def take_events(self) -> ResidencyEvents:
        """What happened since the last call."""
        events, self._events = self._events, ResidencyEvents()
        return events

    def close(self) -> None:
        """Stop the loader thread."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _read_timed(self, digest: str) -> tuple[PackedAdapter, float]:
        started = time.monotonic()
        return self._reader(digest), time.monotonic() - started

    def _activate(self, digest: str) -> _Resident | None:
        """Move a loaded adapter into a slot, evicting idle ones; None if it is not loaded or nothing can be freed."""
        self.prefetch(digest)
        future = self._loading[digest]
        if not future.done():
            return None
        try:
            packed, seconds = future.result()
        except LoraplexError as error:
            del self._loading[digest]
            raise AdapterUnavailableError(f"the adapter's stored package cannot be used: {error}") from error
        except OSError as error:
            del self._loading[digest]
            raise AdapterUnavailableError(
                "the adapter's stored package cannot be read; register it again"
            ) from error
        if packed.flat.numel() > self._arena.capacity:
            del self._loading[digest]
            raise AdapterTooLargeError(
                f"the adapter needs {packed.flat.numel() * packed.flat.element_size()} bytes, more than the whole "
                "adapter arena; raise adapter_arena_bytes"
            )
        extent = self._make_room(packed.flat.numel())
        if extent is None:
            return None
        del self._loading[digest]
        self._events.load_seconds.append(seconds)
        slot = self._free_slots.pop()
        self._arena.place(slot, extent, packed)
        resident = self._resident[digest] = _Resident(slot, extent)
        return resident

    def _make_room(self, num_elements: int) -> Extent | None:
        """A slot and an extent, evicting idle adapters in order of last use; None if leases prevent it."""
        while True:
            if self._free_slots:
                extent = self._arena.allocate(num_elements)
                if extent is not None:
                    return extent
            idle = next((digest for digest, entry in self._resident.items() if entry.leases == 0), None)
            if idle is None:
                return None
            self._evict(idle)

    def _evict(self, digest: str) -> None:
        resident = self._resident.pop(digest)
        self._free_slots.append(resident.slot)
        self._arena.free(resident.extent)
        self._forgotten.discard(digest)
        self._events.evictions += 1
