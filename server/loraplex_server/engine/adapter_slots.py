"""Which adapter is in which slot and where in the arena, who may go for another one, and how room is made.

An adapter in use, pinned, or being copied is never evicted. Where there is room enough but in pieces, extents are moved
together, those in use too: a half-moved adapter is served from both places.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from loraplex_adapters.errors import AdapterTooLargeError
from loraplex_server.engine.adapter_arena import AdapterMemory, Extent, Placement


@dataclass(slots=True)
class Occupant:
    """An adapter in a slot. Made, pinned and ended by `AdapterSlots`; leases and wishes are set by others."""

    digest: str
    slot: int
    extent: Extent
    ranks: dict[tuple[int, str], int]
    leases: int = 0
    is_copying: bool = True  # not published yet
    is_awaited: bool = False  # a waiting sequence wants it
    is_pinned: bool = False
    is_forgotten: bool = False  # evicted with its last lease

    @property
    def is_idle(self) -> bool:
        return self.leases == 0 and not self.is_copying and not self.is_pinned


@dataclass(slots=True)
class _Move:
    """An adapter on its way to the left, projection by projection."""

    occupant: Occupant
    target: int
    ends: list[int]  # of its projections, from the start of its extent
    num_moved: int = 0  # projections

    @property
    def gap(self) -> int:
        """Elements that come free behind the adapter when it has moved."""
        return self.occupant.extent.start - self.target


class AdapterSlots:
    """Owned by the engine's thread; takes no locks."""

    def __init__(self, num_slots: int, arena: AdapterMemory) -> None:
        self.num_slots = num_slots
        self._arena = arena
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._occupants: OrderedDict[str, Occupant] = OrderedDict()  # least recently used first
        self._pinned: frozenset[str] = frozenset()  # in a slot or not
        self._move: _Move | None = None
        self._wanted_run = 0  # elements that some adapter needs in one piece, and all free ones together have
        self.evicted: list[str] = []  # since the owner last emptied it

    @property
    def occupants(self) -> list[Occupant]:
        """Least recently used first."""
        return list(self._occupants.values())

    @property
    def capacity(self) -> int:
        """Elements of the arena."""
        return self._arena.capacity

    @property
    def num_free(self) -> int:
        """Elements that nobody holds, in one piece or not."""
        return self._arena.num_free + (self._move.gap if self._move is not None else 0)

    @property
    def is_compacting(self) -> bool:
        """True while extents have to move before an adapter finds room."""
        return self._move is not None or self._wanted_run > 0

    def active(self, digest: str) -> Occupant | None:
        """The adapter, if it is in a slot and not only on its way there."""
        occupant = self._occupants.get(digest)
        return None if occupant is None or occupant.is_copying else occupant

    def is_pinned(self, digest: str) -> bool:
        """Whether it is not evicted, once it is in a slot."""
        return digest in self._pinned

    def pin(self, digests: Iterable[str]) -> None:
        """From now on these, and no others."""
        self._pinned = frozenset(digests)
        for occupant in self._occupants.values():
            occupant.is_pinned = occupant.digest in self._pinned
            occupant.is_forgotten &= not occupant.is_pinned

    def forget(self, digest: str) -> None:
        """Evict it as soon as it is idle; whatever is, or comes, into a slot for it is not pinned."""
        self.pin(self._pinned - {digest})
        occupant = self.active(digest)
        if occupant is not None:
            occupant.is_forgotten = True
            occupant.is_awaited = False
            self.evict_if_forgotten(occupant)

    def evict_if_forgotten(self, occupant: Occupant) -> None:
        """Whenever it may have become idle."""
        if occupant.is_forgotten and occupant.leases == 0 and not occupant.is_copying:
            self.evict(occupant)

    def touch(self, occupant: Occupant) -> None:
        """It was used just now."""
        self._occupants.move_to_end(occupant.digest)

    def refusal(self, num_elements: int) -> AdapterTooLargeError | None:
        """Why so many elements will never find a slot, as long as pinned adapters are there; None if they may."""
        num_bytes = num_elements * self._arena.element_bytes
        if num_elements > self.capacity:
            return AdapterTooLargeError(
                f"the adapter needs {num_bytes} bytes, more than the whole adapter arena; raise adapter_arena_bytes"
            )
        pinned = [occupant.extent.length for occupant in self._occupants.values() if occupant.is_pinned]
        if len(pinned) == self.num_slots or sum(pinned) + num_elements > self.capacity:
            return AdapterTooLargeError(
                f"the adapter needs a slot and {num_bytes} bytes beside the pinned adapters, which leave less; unpin "
                "one, or raise adapter_slots or adapter_arena_bytes"
            )
        return None

    def has_room(self, num_elements: int, *, may_take_awaited: bool) -> bool:
        """Whether a slot and as many elements are free, or idle adapters would leave them."""
        victims = self._victims(may_take_awaited=may_take_awaited)
        reachable = self.num_free + sum(occupant.extent.length for occupant in victims)
        return reachable >= num_elements and bool(self._free_slots or victims)

    def reserve(
        self, digest: str, num_elements: int, ranks: dict[tuple[int, str], int], *, may_take_awaited: bool
    ) -> Occupant | None:
        """A slot and an extent to copy into; None while they cannot be had.

        Idle adapters go for it in order of last use, no more of them than it takes, and none in vain. With
        `may_take_awaited` also those that sequences wait for: asked for in order of arrival, these are later ones.
        """
        if not self.has_room(num_elements, may_take_awaited=may_take_awaited):
            return None
        for victim in self._victims(may_take_awaited=may_take_awaited):
            if self._free_slots and self.num_free >= num_elements:
                break
            self.evict(victim)
        extent = self._arena.allocate(num_elements)
        if extent is None:
            self._wanted_run = num_elements
            return None
        occupant = Occupant(digest, self._free_slots.pop(), extent, ranks, is_pinned=digest in self._pinned)
        self._occupants[digest] = occupant
        return occupant

    def publish(self, occupant: Occupant) -> None:
        """Its weights are there: steps may use it from now on."""
        self._arena.publish(occupant.slot, Placement.at(occupant.extent.start, occupant.ranks))
        occupant.is_copying = False

    def evict(self, occupant: Occupant) -> None:
        """Free its slot and extent."""
        assert occupant.leases == 0, "an adapter in use is never evicted"
        assert not occupant.is_copying, "an extent that is written is never freed"
        extent = occupant.extent
        if self._move is not None and self._move.occupant is occupant:
            extent = Extent(self._move.target, extent.stop - self._move.target)
            self._move = None
        self._remove(occupant, extent)
        self.evicted.append(occupant.digest)

    def withdraw(self, occupant: Occupant) -> None:
        """Free slot and extent of an adapter that never came; nothing is written there any more."""
        assert occupant.is_copying, "it was published"
        self._remove(occupant, occupant.extent)

    def forget_wanted_run(self) -> None:
        """Whoever still needs room asks again."""
        self._wanted_run = 0

    def compact(self, budget: int) -> int:
        """Move extents together while somebody needs it; returns elements moved.

        Goes on until `budget` elements have moved, at least by one projection of one layer.
        """
        moved = 0
        while moved < budget:
            if self._move is None:
                self._move = self._next_move()
                if self._move is None:
                    break
                self._arena.take(Extent(self._move.target, self._move.gap))
            moved += self._advance(self._move, budget - moved)
        return moved

    def _remove(self, occupant: Occupant, extent: Extent) -> None:
        del self._occupants[occupant.digest]
        self._free_slots.append(occupant.slot)
        self._arena.free(extent)

    def _victims(self, *, may_take_awaited: bool) -> list[Occupant]:
        """Who may be evicted, in that order."""
        idle = [occupant for occupant in self._occupants.values() if occupant.is_idle]
        victims = [occupant for occupant in idle if not occupant.is_awaited]
        if may_take_awaited:
            victims += [occupant for occupant in idle if occupant.is_awaited]
        return victims

    def _next_move(self) -> _Move | None:
        """The first adapter behind a gap that may move; None if nobody needs it or nothing would help."""
        if self._wanted_run == 0 or self._arena.largest_free >= self._wanted_run:
            self._wanted_run = 0
            return None
        end = 0
        for occupant in sorted(self._occupants.values(), key=lambda occupant: occupant.extent.start):
            if occupant.extent.start > end and not occupant.is_copying:
                return _Move(occupant, end, self._arena.projection_ends(occupant.ranks))
            end = occupant.extent.stop
        return None

    def _advance(self, move: _Move, budget: int) -> int:
        """Take the next projections along; returns their elements.

        A piece lands on what has moved already or on the gap, never on what is still to be moved.
        """
        occupant, first = move.occupant, move.num_moved
        start = move.ends[first - 1] if first else 0
        stop = move.ends[first]
        move.num_moved += 1
        while move.num_moved < len(move.ends) and (
            stop == start or move.ends[move.num_moved] <= max(stop, start + budget)
        ):
            stop = move.ends[move.num_moved]
            move.num_moved += 1
        old_start = occupant.extent.start
        self._arena.shift(old_start + start, move.target + start, stop - start)
        if move.num_moved == len(move.ends):
            self._move = None
            occupant.extent = Extent(move.target, occupant.extent.length)
            self._arena.free(Extent(occupant.extent.stop, old_start - move.target))
            self._arena.publish(occupant.slot, Placement.at(move.target, occupant.ranks))
        else:
            placement = Placement(occupant.ranks, move.target, old_start, move.num_moved)
            self._arena.publish(occupant.slot, placement)
        return stop - start
