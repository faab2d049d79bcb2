"""Where each adapter is, and how it comes to where it is needed: arena ← host cache ← disk, none of it in a step's way.

Reading happens in a thread. Copies into the arena are queued between steps, a bounded number of bytes for each, and an
adapter is published between steps once its copy is over. The engine's thread owns everything here. An adapter on its
way delays only the sequences that name it.
"""

from __future__ import annotations

import enum
import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from loraplex_adapters.errors import AdapterTooLargeError, AdapterUnavailableError, LoraplexError
from loraplex_server.engine.adapter_arena import AdapterMemory, CopyMark, PackedAdapter
from loraplex_server.engine.adapter_loader import AdapterLoader, AdapterReader, LoadedAdapter
from loraplex_server.engine.adapter_slots import AdapterSlots, Occupant
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.engine.messages import AdapterLoadFailure, AdapterMove, Tier

log = logging.getLogger(__name__)


class _Stage(enum.Enum):
    QUEUED = enum.auto()  # to be read
    READING = enum.auto()
    READ = enum.auto()  # held in the host cache, waits for a slot
    COPYING = enum.auto()


@dataclass(slots=True)
class _Load:
    """An adapter on its way into a slot."""

    digest: str
    stage: _Stage = _Stage.QUEUED
    is_awaited: bool = False  # by a sequence
    is_warming: bool = False  # into a slot for nobody yet
    is_forgotten: bool = False
    reading: Future[LoadedAdapter] | None = None
    packed: PackedAdapter | None = None  # held in the host cache: READ and COPYING
    num_elements: int | None = None  # once known
    failure: Exception | None = None
    occupant: Occupant | None = None  # COPYING
    num_copied: int = 0
    mark: CopyMark | None = None  # behind its last piece
    copy_started_s: float = 0.0


@dataclass(slots=True)
class ResidencyEvents:
    """What happened since the last call of `take_events`."""

    moves: list[AdapterMove] = field(default_factory=list)  # one per adapter at most, to where it is now
    read_seconds: list[float] = field(default_factory=list)
    copy_seconds: list[float] = field(default_factory=list)
    failures: list[AdapterLoadFailure] = field(default_factory=list)
    evictions: int = 0  # out of a slot
    compacted_bytes: int = 0


class AdapterResidency:
    """Adapter slots with least-recently-used eviction, over a cache in host memory."""

    def __init__(
        self,
        num_slots: int,
        arena: AdapterMemory,
        cache: HostCache,
        reader: AdapterReader,
        *,
        copy_bytes: int,
        low_priority: bool = False,
    ) -> None:
        """`copy_bytes`: into or within the arena, for each step; `low_priority`: of the loader's thread."""
        self._arena = arena
        self._cache = cache
        self._slots = AdapterSlots(num_slots, arena)
        self._loader = AdapterLoader(reader, cache, low_priority=low_priority)
        self._copy_elements = max(1, copy_bytes // arena.element_bytes)
        self._loads: dict[str, _Load] = {}  # in order of first wish
        self._reading: _Load | None = None
        self._copying: list[_Load] = []  # in order
        self._pinned: set[str] = set()
        self._events = ResidencyEvents()
        self._moved: dict[str, AdapterMove] = {}

    # What sequences ask for.

    def prefetch(self, digest: str) -> None:
        """A sequence waits for the adapter: bring it on its way unless it is there."""
        occupant = self._slots.active(digest)
        if occupant is None:
            self._want(digest).is_awaited = True
        else:
            occupant.is_awaited = True
            occupant.is_forgotten = False

    def cancel_prefetch(self, digest: str) -> None:
        """No sequence waits for the adapter any more."""
        occupant = self._slots.active(digest)
        if occupant is not None:
            occupant.is_awaited = False
        load = self._loads.get(digest)
        if load is not None:
            load.is_awaited = False
            self._drop_unless_wanted(load)

    def acquire(self, digest: str) -> int | None:
        """Lease the adapter for one running sequence and return its slot.

        None while it is on its way or while every slot that could be freed for it is in use.
        Raises AdapterUnavailableError when its package cannot be read, AdapterTooLargeError when the arena, or what
        pinned adapters leave of it, is smaller; a later request tries again.
        """
        occupant = self._slots.active(digest)
        if occupant is None:
            load = self._want(digest)
            load.is_awaited = True
            if load.stage is _Stage.READ:
                self._activate(load, may_take_awaited=True)
            if load.failure is not None:
                self._give_up(load)
                raise load.failure
            return None
        occupant.is_awaited = False
        occupant.is_forgotten = False
        occupant.leases += 1
        self._slots.touch(occupant)
        return occupant.slot

    def release(self, digest: str) -> None:
        """Give one lease back."""
        occupant = self._slots.active(digest)
        assert occupant is not None, "a lease of an adapter that is not there"
        occupant.leases -= 1
        self._evict_if_forgotten(occupant)

    def is_loading(self, digest: str) -> bool:
        """True while the adapter is read or copied; False once it waits for nothing but a slot."""
        load = self._loads.get(digest)
        return load is not None and load.failure is None and load.stage is not _Stage.READ

    def is_pinned(self, digest: str) -> bool:
        """Whether it is never evicted, so that its sequences keep nobody else from a slot."""
        return digest in self._pinned

    # What operators ask for.

    def warm(self, digest: str) -> None:
        """Load the adapter into a slot, when one can be had, though no sequence waits for it."""
        if self._slots.active(digest) is None:
            self._want(digest).is_warming = True

    def pin(self, digests: list[str]) -> None:
        """From now on these, and no others, are never evicted. Those that are not there are loaded."""
        self._pinned = set(digests)
        for occupant in self._slots.occupants:
            occupant.is_pinned = occupant.digest in self._pinned
            occupant.is_forgotten &= not occupant.is_pinned
        for load in list(self._loads.values()):
            self._drop_unless_wanted(load)
        for digest in digests:
            if self._slots.active(digest) is None:
                self._want(digest)

    def forget(self, digest: str) -> None:
        """No new sequence will name this digest: it leaves its slot when it is idle, and the host cache."""
        self._pinned.discard(digest)
        self._cache.drop(digest)
        load = self._loads.get(digest)
        if load is not None:
            load.is_awaited = load.is_warming = False
            load.is_forgotten = True
            self._drop_unless_wanted(load)
        occupant = self._slots.active(digest)
        if occupant is not None:
            occupant.is_forgotten = True
            occupant.is_awaited = occupant.is_pinned = False
            self._evict_if_forgotten(occupant)

    # What the engine does between steps.

    def advance(self) -> None:
        """Take what has been read, publish what has been copied, begin what can begin. Never waits."""
        self._slots.forget_wanted_run()
        self._take_read()
        for load in list(self._copying):
            if load.mark is not None and load.mark.is_over():
                self._publish(load)
        self._activate_for_operators()
        self._begin_read()

    def copy(self, *, is_idle: bool) -> None:
        """Queue the copies of one step; all there are if no step runs or comes (`is_idle`)."""
        budget = self._arena.capacity if is_idle else self._copy_elements
        for load in self._copying:
            if budget > 0 and load.mark is None:
                budget -= self._copy_piece(load, budget)
        if budget > 0:
            self._events.compacted_bytes += self._slots.compact(budget) * self._arena.element_bytes

    @property
    def is_busy(self) -> bool:
        """True while something is under way that goes on by itself, so that `advance` may soon find news."""
        if self._reading is not None or self._copying or self._slots.is_compacting:
            return True
        return any(
            self._may_read(load) if load.stage is _Stage.QUEUED else self._may_activate(load)
            for load in self._loads.values()
            if not (load.is_awaited and load.stage is _Stage.READ)
        )

    @property
    def has_news(self) -> bool:
        """Whether an adapter has moved, or could not be loaded, since the last `take_events`."""
        return bool(self._moved or self._slots.evicted or self._events.failures)

    @property
    def is_pin_waiting(self) -> bool:
        """Whether a pinned adapter waits for nothing but a slot."""
        return any(
            self._waits_for_room(load) and load.digest in self._pinned for load in self._loads.values()
        )

    @property
    def active_digests(self) -> list[str]:
        """Of adapters in slots, least recently used first."""
        return [occupant.digest for occupant in self._slots.occupants if not occupant.is_copying]

    @property
    def num_slots_used(self) -> int:
        """Slots with an adapter in them or on its way there."""
        return len(self._slots.occupants)

    @property
    def num_loading(self) -> int:
        """Adapters that somebody wants and that are not in their slot yet."""
        return sum(self._is_wanted(load) for load in self._loads.values())

    @property
    def num_leases(self) -> int:
        """Leases held by running sequences."""
        return sum(occupant.leases for occupant in self._slots.occupants)

    @property
    def arena_bytes_used(self) -> int:
        return (self._slots.capacity - self._slots.num_free) * self._arena.element_bytes

    @property
    def host_bytes_used(self) -> int:
        return self._cache.bytes_used

    def tier(self, digest: str) -> Tier:
        """The nearest place that has the adapter."""
        if self._slots.active(digest) is not None:
            return "slot"
        return "host" if digest in self._cache else "disk"

    def take_events(self) -> ResidencyEvents:
        """What happened since the last call."""
        events, self._events = self._events, ResidencyEvents()
        evicted, self._slots.evicted = self._slots.evicted, []
        events.evictions = len(evicted)
        for digest in (*evicted, *self._cache.take_evicted()):
            self._moved.setdefault(digest, AdapterMove(digest, "disk"))
        events.moves = [
            AdapterMove(digest, self.tier(digest), move.read_seconds, move.copy_seconds)
            for digest, move in self._moved.items()
        ]
        self._moved = {}
        return events

    def close(self) -> None:
        """Stop the loader thread."""
        self._loader.close()

    # From wish to slot.

    def _want(self, digest: str) -> _Load:
        """The load of an adapter that is in no slot; begun if there is none."""
        load = self._loads.get(digest)
        if load is None:
            load = self._loads[digest] = _Load(digest)
            self._hold_if_cached(load)
            self._begin_read()
        load.is_forgotten = False
        return load

    def _is_wanted(self, load: _Load) -> bool:
        return load.is_awaited or load.is_warming or load.digest in self._pinned

    def _drop_unless_wanted(self, load: _Load) -> None:
        """What is being read or copied goes on: the one ends in the host cache, the other in the slot."""
        if load.stage in (_Stage.READING, _Stage.COPYING):
            return
        has_failed_for_nobody = load.failure is not None and not load.is_awaited
        if has_failed_for_nobody or not self._is_wanted(load):
            self._give_up(load)

    def _give_up(self, load: _Load) -> None:
        """Operators learn why, if that is a failure of what they asked for."""
        self._let_go(load)
        del self._loads[load.digest]
        if isinstance(load.failure, LoraplexError) and (load.is_warming or load.digest in self._pinned):
            self._events.failures.append(
                AdapterLoadFailure(load.digest, load.failure.reason, str(load.failure))
            )

    def _hold_if_cached(self, load: _Load) -> bool:
        load.packed = self._cache.hold(load.digest)
        if load.packed is None:
            return False
        load.stage = _Stage.READ
        load.num_elements = load.packed.flat.numel()
        return True

    def _let_go(self, load: _Load) -> None:
        """Give back the hold on the host copy."""
        if load.packed is not None:
            load.packed = None
            self._cache.release(load.digest)

    def _may_read(self, load: _Load) -> bool:
        """What no sequence waits for is read only if there is room for it."""
        return load.failure is None and (
            load.is_awaited or load.num_elements is None or self._may_activate(load)
        )

    def _begin_read(self) -> None:
        """One at a time, and no more ahead than the host cache holds besides what was read and waits."""
        while self._reading is None and self._num_held() < self._cache.capacity:
            load = self._next_to_read()
            if load is None:
                return
            if not self._hold_if_cached(load):
                load.stage = _Stage.READING
                load.reading = self._loader.read(load.digest)
                self._reading = load

    def _num_held(self) -> int:
        """Elements that were read and wait, or are being copied."""
        return sum(load.packed.flat.numel() for load in self._loads.values() if load.packed is not None)

    def _next_to_read(self) -> _Load | None:
        """In order of first wish, what sequences wait for before the rest."""
        queued = [
            load for load in self._loads.values() if load.stage is _Stage.QUEUED and self._may_read(load)
        ]
        return next((load for load in queued if load.is_awaited), queued[0] if queued else None)

    def _take_read(self) -> None:
        load = self._reading
        if load is None or load.reading is None or not load.reading.done():
            return
        self._reading = None
        reading, load.reading = load.reading, None
        try:
            loaded = reading.result()
        except (LoraplexError, OSError, RuntimeError, MemoryError) as error:  # the latter: no memory for it
            log.warning("an adapter cannot be read", extra={"digest": load.digest, "cause": str(error)})
            load.stage = _Stage.QUEUED
            load.failure = _unavailable(error)  # sequences are told when they next ask
        else:
            load.stage = _Stage.READ
            load.packed = loaded.packed
            load.num_elements = loaded.packed.flat.numel()
            self._events.read_seconds.append(loaded.read_seconds)
            self._tell(load.digest, "host", read_seconds=loaded.read_seconds)
            if load.is_forgotten:
                self._cache.drop(load.digest)
        self._drop_unless_wanted(load)

    def _activate(self, load: _Load, *, may_take_awaited: bool) -> None:
        """Begin to copy a read adapter into a slot, if there is one; it fails where there never will be."""
        assert load.packed is not None, "it has been read"
        assert load.num_elements is not None, "it has been read"
        load.failure = self._too_large(load.num_elements)
        if load.failure is not None:
            return
        load.occupant = self._slots.reserve(
            load.digest, load.num_elements, load.packed.ranks, may_take_awaited=may_take_awaited
        )
        if load.occupant is not None:
            load.occupant.is_pinned = load.digest in self._pinned
            load.stage = _Stage.COPYING
            load.copy_started_s = time.monotonic()
            self._copying.append(load)

    def _too_large(self, num_elements: int) -> AdapterTooLargeError | None:
        num_bytes = num_elements * self._arena.element_bytes
        if num_elements > self._slots.capacity:
            return AdapterTooLargeError(
                f"the adapter needs {num_bytes} bytes, more than the whole adapter arena; raise adapter_arena_bytes"
            )
        if not self._slots.could_ever_hold(num_elements):
            return AdapterTooLargeError(
                f"the adapter needs a slot and {num_bytes} bytes beside the pinned adapters, which leave less; unpin "
                "one, or raise adapter_slots or adapter_arena_bytes"
            )
        return None

    def _waits_for_room(self, load: _Load) -> bool:
        """Whether nothing but a slot is missing; what no sequence waits for may have left the host cache meanwhile."""
        if load.failure is not None or load.num_elements is None:
            return False
        return load.stage is _Stage.READ or (load.stage is _Stage.QUEUED and not load.is_awaited)

    def _may_activate(self, load: _Load) -> bool:
        """Whether an operator's adapter would find room, or be told that it never will."""
        assert load.num_elements is not None, "its size is known"
        may_take_awaited = load.digest in self._pinned
        return (
            self._slots.has_room(load.num_elements, may_take_awaited=may_take_awaited)
            or self._too_large(load.num_elements) is not None
        )

    def _activate_for_operators(self) -> None:
        """Pinned adapters before all others, since there are not many; warmed ones behind what sequences wait for."""
        waiting = [load for load in self._loads.values() if self._waits_for_room(load)]
        may_warm = not any(load.is_awaited for load in waiting)
        for load in waiting:
            is_pinned = load.digest in self._pinned
            if load.is_awaited and not is_pinned:
                continue
            if not (is_pinned or may_warm) or not self._may_activate(load):
                if not load.is_awaited:
                    self._let_go(load)  # others may need the host cache before a slot comes free
                    load.stage = _Stage.QUEUED
            elif load.stage is _Stage.READ or self._hold_if_cached(load):
                self._activate(load, may_take_awaited=is_pinned)
                self._drop_unless_wanted(load)

    def _copy_piece(self, load: _Load, budget: int) -> int:
        """Queue the next elements of a copy; returns how many."""
        assert load.packed is not None, "it has a place on the host"
        assert load.occupant is not None, "it has a place in the arena"
        flat = load.packed.flat
        stop = min(load.num_copied + budget, flat.numel())
        self._arena.copy(load.occupant.extent.start + load.num_copied, flat[load.num_copied : stop])
        num_elements = stop - load.num_copied
        load.num_copied = stop
        if stop == flat.numel():
            load.mark = self._arena.mark()
        return num_elements

    def _publish(self, load: _Load) -> None:
        """The copy is over: sequences may use the adapter."""
        assert load.occupant is not None, "it was copied somewhere"
        seconds = time.monotonic() - load.copy_started_s
        occupant = load.occupant
        self._slots.publish(occupant)
        occupant.is_awaited = load.is_awaited
        occupant.is_pinned = load.digest in self._pinned
        occupant.is_forgotten = load.is_forgotten
        self._let_go(load)
        self._copying.remove(load)
        del self._loads[load.digest]
        self._events.copy_seconds.append(seconds)
        self._tell(load.digest, "slot", copy_seconds=seconds)
        self._evict_if_forgotten(occupant)

    def _evict_if_forgotten(self, occupant: Occupant) -> None:
        if occupant.is_forgotten and occupant.leases == 0 and not occupant.is_copying:
            self._slots.evict(occupant)

    def _tell(self, digest: str, tier: Tier, *, read_seconds: float = 0.0, copy_seconds: float = 0.0) -> None:
        former = self._moved.get(digest, AdapterMove(digest, tier))
        self._moved[digest] = AdapterMove(
            digest, tier, former.read_seconds + read_seconds, former.copy_seconds + copy_seconds
        )


def _unavailable(error: Exception) -> AdapterUnavailableError:
    if isinstance(error, LoraplexError):
        failure = AdapterUnavailableError(f"the adapter's stored package cannot be used: {error}")
    else:
        failure = AdapterUnavailableError("the adapter's stored package cannot be read; register it again")
    failure.__cause__ = error
    return failure
