"""Adapters in host memory, laid out as the arena holds them; the least recently used idle ones make room.

On a GPU the memory is pinned, so that copies to the device run beside the steps.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.engine.adapter_arena import Extent, FreeExtents, PackedAdapter


@dataclass(slots=True)
class _Entry:
    flat: Tensor
    extent: Extent | None  # None: a buffer of its own, kept only while held
    packed: PackedAdapter | None = None  # None while it is being read
    holds: int = 1
    is_dropped: bool = False


class HostCache:
    """One flat buffer. Entries that are being read, or that wait or are copied, are held and never evicted.

    Thread-safe: the loader reserves and fills, the engine's thread holds and releases.
    """

    def __init__(self, num_elements: int, dtype: torch.dtype, *, pin_memory: bool) -> None:
        self._buffer = torch.empty(num_elements, dtype=dtype, pin_memory=pin_memory)
        self._pin_memory = pin_memory
        self._extents = FreeExtents(num_elements)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._bytes_used = 0
        self._evicted: list[str] = []
        self._lock = threading.Lock()

    @property
    def capacity(self) -> int:
        """Elements."""
        return self._extents.capacity

    @property
    def bytes_used(self) -> int:
        """Of all entries, those in buffers of their own too."""
        return self._bytes_used

    def reserve(self, digest: str, num_elements: int) -> Tensor:
        """A held place for an adapter that is about to be read; idle adapters go for it.

        Where held ones leave no room, or the adapter is larger than the cache, the place is a buffer of its own.
        """
        with self._lock:
            assert digest not in self._entries, "an adapter is read while it is there"
            extent = self._make_room(num_elements)
            if extent is None:
                flat = torch.empty(num_elements, dtype=self._buffer.dtype, pin_memory=self._pin_memory)
            else:
                flat = self._buffer[extent.start : extent.start + extent.length]
            self._entries[digest] = _Entry(flat, extent)
            self._bytes_used += flat.nbytes
            return flat

    def complete(self, packed: PackedAdapter) -> None:
        """What was reserved is read; it stays held until `release`."""
        with self._lock:
            self._entries[packed.digest].packed = packed

    def hold(self, digest: str) -> PackedAdapter | None:
        """Keep an adapter until `release`; None if it is not there."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None or entry.packed is None:
                return None
            entry.holds += 1
            return entry.packed

    def release(self, digest: str) -> None:
        """Give one hold back. Of a read that failed, too: then nothing is kept."""
        with self._lock:
            entry = self._entries[digest]
            assert entry.holds > 0, "a hold is given back twice"
            entry.holds -= 1
            self._entries.move_to_end(digest)
            if entry.holds == 0 and (entry.is_dropped or entry.extent is None or entry.packed is None):
                self._remove(digest)

    def drop(self, digest: str) -> None:
        """Keep no copy of this adapter: at once, or when its last hold is given back."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return
            entry.is_dropped = True
            if entry.holds == 0:
                self._remove(digest)

    def __contains__(self, digest: str) -> bool:
        """Whether the adapter has been read and is there."""
        with self._lock:
            entry = self._entries.get(digest)
            return entry is not None and entry.packed is not None

    def take_evicted(self) -> list[str]:
        """Who has left since the last call."""
        with self._lock:
            evicted, self._evicted = self._evicted, []
            return evicted

    def _make_room(self, num_elements: int) -> Extent | None:
        """An extent, for which idle adapters are evicted; nobody is where that would not be enough."""
        extent = self._extents.allocate(num_elements)
        if extent is not None or not self._could_fit(num_elements):
            return extent
        while extent is None:
            idle = next(digest for digest, entry in self._entries.items() if entry.holds == 0)
            self._remove(idle)
            extent = self._extents.allocate(num_elements)
        return extent

    def _could_fit(self, num_elements: int) -> bool:
        """Whether some run between held extents is long enough."""
        held = [e.extent for e in self._entries.values() if e.extent is not None and e.holds > 0]
        end = 0
        for extent in sorted(held, key=lambda extent: extent.start):
            if extent.start - end >= num_elements:
                return True
            end = extent.start + extent.length
        return self.capacity - end >= num_elements

    def _remove(self, digest: str) -> None:
        entry = self._entries.pop(digest)
        self._bytes_used -= entry.flat.nbytes
        if entry.extent is not None:
            self._extents.free(entry.extent)
        self._evicted.append(digest)
