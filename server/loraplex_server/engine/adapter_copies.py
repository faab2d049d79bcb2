"""Adapters on their way from host memory into a slot: each has a slot and an extent that nobody may use yet.

A copy may begin while its adapter is still being read, and takes what has been checked so far. So that copies never
pile up in front of what a step needs of the bus, no more than a bounded number of elements is queued and not over.
Owned by the engine's thread.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from loraplex_server.engine.adapter_arena import AdapterMemory, CopyMark
from loraplex_server.engine.adapter_loader import HostWeights
from loraplex_server.engine.adapter_slots import AdapterSlots, Occupant


@dataclass(slots=True, eq=False)
class AdapterCopy:
    """Weights of one attempt at reading, on their way into one slot. Made and ended by `AdapterCopies`."""

    occupant: Occupant
    weights: HostWeights
    num_queued: int = 0  # elements
    mark: CopyMark | None = None  # behind the last of them, once all are queued
    started_s: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        """Whether all that the weights will ever hold lies in the extent."""
        return self.mark is not None and self.mark.is_over()


class AdapterCopies:
    """What is being copied, in order of its beginning, and what was given up and is still being written to."""

    def __init__(self, arena: AdapterMemory, slots: AdapterSlots, max_ahead: int) -> None:
        """`max_ahead`: elements queued and not over, at any time; but for an idle engine's."""
        self._arena = arena
        self._slots = slots
        self._max_ahead = max_ahead
        self._copies: list[AdapterCopy] = []
        self._portions: deque[tuple[CopyMark, int]] = deque()  # queued: behind it, its elements; oldest first
        self._given_up: list[tuple[CopyMark, Occupant]] = []

    @property
    def is_busy(self) -> bool:
        return bool(self._copies or self._given_up)

    @property
    def has_more_to_queue(self) -> bool:
        """Whether a copy is not queued to its end: the rest is being read, or the bound was in its way."""
        return any(copy.mark is None for copy in self._copies)

    def begin(self, weights: HostWeights, *, may_take_awaited: bool) -> AdapterCopy | None:
        """Take a slot and an extent for the weights; None while they cannot be had. See `AdapterSlots.reserve`."""
        packed = weights.packed
        if self.is_clearing(packed.digest):
            return None
        occupant = self._slots.reserve(
            packed.digest, weights.num_elements, packed.ranks, may_take_awaited=may_take_awaited
        )
        if occupant is None:
            return None
        copy = AdapterCopy(occupant, weights)
        self._copies.append(copy)
        return copy

    def publish(self, copy: AdapterCopy) -> None:
        """The copy is over, and its weights were sound: steps may use them from now on."""
        assert copy.is_over, "weights are published when all of them are there"
        self._copies.remove(copy)
        self._slots.publish(copy.occupant)

    def give_up(self, copy: AdapterCopy) -> None:
        """The weights were no good: slot and extent come free once nothing more will be written there."""
        self._copies.remove(copy)
        self._given_up.append((self._arena.mark(), copy.occupant))

    def is_clearing(self, digest: str) -> bool:
        """Whether a former copy of the adapter was given up and still has its slot."""
        return any(occupant.digest == digest for _, occupant in self._given_up)

    def clear(self) -> bool:
        """Free the slots of copies that were given up, as far as nothing is written there any more; whether any was."""
        cleared = [entry for entry in self._given_up if entry[0].is_over()]
        for entry in cleared:
            self._given_up.remove(entry)
            self._slots.withdraw(entry[1])
        return bool(cleared)

    def queue(self, *, is_idle: bool) -> int:
        """Queue what has been checked, within the bound; no bound holds where no step runs or comes (`is_idle`).

        Returns the elements that would still have been within it.
        """
        while self._portions and self._portions[0][0].is_over():
            self._portions.popleft()
        room = self._max_ahead - sum(num_elements for _, num_elements in self._portions)
        room = self._arena.capacity if is_idle else max(0, room)
        for copy in self._copies:
            room -= self._queue_portion(copy, room)
        return room

    def _queue_portion(self, copy: AdapterCopy, room: int) -> int:
        """The next elements of a copy; returns how many."""
        start, stop = copy.num_queued, min(copy.weights.num_checked, copy.num_queued + room)
        if stop == start:
            return 0
        self._arena.copy(copy.occupant.extent.start + start, copy.weights.packed.flat[start:stop])
        mark = self._arena.mark()
        self._portions.append((mark, stop - start))
        copy.num_queued = stop
        if stop == copy.weights.num_elements:
            copy.mark = mark
        return stop - start
