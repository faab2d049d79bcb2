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

from loraplex_adapters.errors import AdapterUnavailableError, LoraplexError
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout, Extent, PackedAdapter
from loraplex_server.kernels.lora import LoraLayers

AdapterReader = Callable[[str], PackedAdapter]
"""Digest -> packed weights; runs in the loader thread and raises a LoraplexError when it cannot."""


@dataclass(slots=True)
class _Resident:
    slot: int
    extent: Extent
    layers: LoraLayers
    leases: int = 0


@dataclass(slots=True)
class ResidencyEvents:
    """What happened since the last call of `take_events`."""

    load_seconds: list[float] = field(default_factory=list)
    evictions: int = 0


class AdapterResidency:
    """Adapter slots with least-recently-used eviction; an adapter in use is never evicted."""

    def __init__(
        self, num_slots: int, arena: AdapterArena, layout: AdapterLayout, reader: AdapterReader
    ) -> None:
        self._arena = arena
        self._layout = layout
        self._reader = reader
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._resident: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first
        self._digest_of_slot: dict[int, str] = {}
        self._loading: dict[str, Future[tuple[PackedAdapter, float]]] = {}
        self._forgotten: set[str] = set()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-loader")
        self._events = ResidencyEvents()

    def prefetch(self, digest: str) -> None:
        """Begin loading unless the adapter is resident or on its way."""
        self._forgotten.discard(digest)
        if digest not in self._resident and digest not in self._loading:
            self._loading[digest] = self._loader.submit(self._read_timed, digest)

    def acquire(self, digest: str) -> int | None:
        """Lease the adapter for one running sequence and return its slot.

        None while it loads or while every slot that could be freed for it is in use.
        Raises AdapterUnavailableError when its package cannot be read; a later request tries again.
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
        loading = self._loading.pop(digest, None)
        if loading is not None:
            loading.cancel()  # one that is being read, or was, is dropped with its future
        resident = self._resident.get(digest)
        if resident is not None and resident.leases:
            self._forgotten.add(digest)
        elif resident is not None:
            self._evict(digest)

    def is_loading(self, digest: str) -> bool:
        """True while the package is being read; False once it waits for nothing but a slot."""
        loading = self._loading.get(digest)
        return loading is not None and not loading.done()

    def layers_of_slot(self, slot: int) -> LoraLayers:
        """The weights in a leased slot."""
        return self._resident[self._digest_of_slot[slot]].layers

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
            raise AdapterUnavailableError(
                f"the adapter needs {packed.flat.numel() * packed.flat.element_size()} bytes, more than the whole "
                "adapter arena; raise adapter_arena_bytes"
            )
        extent = self._make_room(packed.flat.numel())
        if extent is None:
            return None
        del self._loading[digest]
        self._events.load_seconds.append(seconds)
        slot = self._free_slots.pop()
        view = self._arena.write(extent, packed.flat)
        resident = _Resident(slot, extent, self._layout.views(view, packed.ranks))
        self._resident[digest] = resident
        self._digest_of_slot[slot] = digest
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
        del self._digest_of_slot[resident.slot]
        self._free_slots.append(resident.slot)
        self._arena.free(resident.extent)
        self._forgotten.discard(digest)
        self._events.evictions += 1
