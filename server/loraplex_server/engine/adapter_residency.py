"""Where each adapter is, and how it comes to where it is needed: arena ← host cache ← disk, none of it in a step's way.

Reading happens in threads. What is read and checked is copied into the arena while the rest is still being read: queued
between steps, with a bound on the bytes ahead. An adapter is published between steps, once all of it was found sound
and its copy is over. The engine's thread owns everything here. An adapter on its way delays only the sequences that
name it.
"""

from __future__ import annotations

import logging
import time

from loraplex_adapters.errors import AdapterTooLargeError, AdapterUnavailableError
from loraplex_server.engine.adapter_arena import AdapterMemory
from loraplex_server.engine.adapter_copies import AdapterCopies
from loraplex_server.engine.adapter_load import AdapterLoad, Stage, failure_of
from loraplex_server.engine.adapter_loader import AdapterLoader, AdapterReader, HostWeights
from loraplex_server.engine.adapter_slots import AdapterSlots, Occupant
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.engine.messages import AdapterLoadFailure, Tier
from loraplex_server.engine.residency_events import ResidencyEvents, ResidencyLog

log = logging.getLogger(__name__)

_MAX_MOVED_BYTES = 64 * 2**20  # within the arena, for each step: unlike copies, it waits for them


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
        max_reads: int = 1,
        low_priority: bool = False,
    ) -> None:
        """`copy_bytes`: into the arena, queued ahead, and within it, for each step; `max_reads`: adapters at once;
        `low_priority`: of the threads that read.
        """
        self._arena = arena
        self._cache = cache
        self._slots = AdapterSlots(num_slots, arena)
        self._loader = AdapterLoader(reader, cache, max_reads=max_reads, low_priority=low_priority)
        self._copies = AdapterCopies(arena, self._slots, max(1, copy_bytes // arena.element_bytes))
        self._loads: dict[str, AdapterLoad] = {}  # in order of first wish
        self._largest_elements = 0  # of all adapters that were read
        self._pinned: set[str] = set()
        self._log = ResidencyLog()

    # What sequences ask for.

    def prefetch(self, digest: str) -> None:
        """A sequence waits for the adapter, until `cancel_prefetch`: bring it on its way, or let it stay there."""
        occupant = self._slots.active(digest)
        if occupant is None:
            self._want(digest).is_awaited = True
        else:
            occupant.is_awaited = True
            occupant.is_forgotten = False

    def cancel_prefetch(self, digest: str) -> None:
        """No sequence waits for the adapter any more: those that did run with it, or have ended."""
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
        Raises AdapterUnavailableError when its package cannot be read, SequenceFailedError when loading it failed for
        another reason, AdapterTooLargeError when the arena, or what pinned adapters leave of it, is smaller; a later
        request tries again.
        """
        occupant = self._slots.active(digest)
        if occupant is None:
            load = self._want(digest)
            load.is_awaited = True
            if load.stage is Stage.READ:
                self._activate(load, may_take_awaited=True)
            elif load.stage is Stage.READING:
                self._activate_early(load)
            if load.failure is not None:
                self._give_up(load)
                raise load.failure
            return None
        occupant.is_forgotten = False
        occupant.leases += 1
        self._slots.touch(occupant)
        return occupant.slot

    def bring(self, digest: str) -> None:
        """A sequence that waits for something else will need the adapter: let it go on into a slot, if it can be had
        from nobody who is waited for.
        """
        load = self._loads.get(digest)
        if load is not None and load.stage in (Stage.READING, Stage.READ):
            self._activate_early(load)

    def release(self, digest: str) -> None:
        """Give one lease back."""
        occupant = self._slots.active(digest)
        assert occupant is not None, "a lease of an adapter that is not there"
        occupant.leases -= 1
        self._evict_if_forgotten(occupant)

    def is_loading(self, digest: str) -> bool:
        """True while the adapter is read or copied; False once it waits for nothing but a slot."""
        load = self._loads.get(digest)
        return load is not None and load.failure is None and load.stage is not Stage.READ

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
        self._slots.unpin(digest)
        self._cache.drop(digest)
        load = self._loads.get(digest)
        if load is not None:
            load.is_awaited = load.is_warming = False
            load.is_forgotten = True
            self._drop_unless_wanted(load)
        occupant = self._slots.active(digest)
        if occupant is not None:
            occupant.is_forgotten = True
            occupant.is_awaited = False
            self._evict_if_forgotten(occupant)

    # What the engine does between steps.

    def advance(self) -> None:
        """Take what has been read, publish what has been copied, begin what can begin. Never waits."""
        self._slots.forget_wanted_run()
        self._copies.clear()
        for load in list(self._loads.values()):
            if load.reading is not None:
                self._follow(load)
            if load.can_be_published:
                self._publish(load)
        self._activate_for_operators()
        self._begin_reads()

    def copy(self, *, is_idle: bool) -> None:
        """Queue the copies of one step; all there are if no step runs or comes (`is_idle`)."""
        room = self._copies.queue(is_idle=is_idle)
        room = min(room, max(1, _MAX_MOVED_BYTES // self._arena.element_bytes))
        if room > 0:
            self._log.was_compacted(self._slots.compact(room) * self._arena.element_bytes)

    @property
    def is_busy(self) -> bool:
        """True while something is under way that goes on by itself, so that `advance` may soon find news."""
        if self._copies.is_busy or self._slots.is_compacting:
            return True
        return any(
            load.is_under_way
            or (self._may_read(load) if load.stage is Stage.QUEUED else self._may_activate(load))
            for load in self._loads.values()
            if not (load.is_awaited and load.stage is Stage.READ)
        )

    @property
    def has_news(self) -> bool:
        """Whether an adapter has moved, or could not be loaded, since the last `take_events`."""
        return bool(self._slots.evicted) or not self._log.is_empty

    @property
    def is_pin_waiting(self) -> bool:
        """Whether a pinned adapter waits for nothing but a slot."""
        return any(load.waits_for_room and load.digest in self._pinned for load in self._loads.values())

    @property
    def active_digests(self) -> list[str]:
        """Of adapters in slots, least recently used first."""
        return [occupant.digest for occupant in self._slots.occupants if not occupant.is_copying]

    @property
    def num_slots_used(self) -> int:
        """Slots with an adapter in them or on its way there."""
        return len(self._slots.occupants)

    @property
    def num_slots_pinned(self) -> int:
        """Of these, with a pinned adapter."""
        return sum(occupant.is_pinned for occupant in self._slots.occupants)

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
        evicted, self._slots.evicted = self._slots.evicted, []
        return self._log.take(evicted, self._cache.take_evicted(), self.tier)

    def close(self) -> None:
        """Stop the loader's threads."""
        self._loader.close()

    # From wish to slot.

    def _want(self, digest: str) -> AdapterLoad:
        """The load of an adapter that is in no slot; begun if there is none."""
        load = self._loads.get(digest)
        if load is None:
            load = self._loads[digest] = AdapterLoad(digest)
            self._hold_if_cached(load)
            self._begin_reads()
        load.is_forgotten = False
        return load

    def _is_wanted(self, load: AdapterLoad) -> bool:
        return load.is_awaited or load.is_warming or load.digest in self._pinned

    def _drop_unless_wanted(self, load: AdapterLoad) -> None:
        """What is being read or copied goes on: the one ends in the host cache, the other in the slot."""
        if load.is_under_way:
            return
        has_failed_for_nobody = load.failure is not None and not load.is_awaited
        if has_failed_for_nobody or not self._is_wanted(load):
            self._give_up(load)

    def _give_up(self, load: AdapterLoad) -> None:
        """Operators learn why, if that is a failure of what they asked for."""
        self._let_go(load)
        del self._loads[load.digest]
        if load.failure is not None and (load.is_warming or load.digest in self._pinned):
            self._log.has_failed(AdapterLoadFailure(load.digest, load.failure.reason, str(load.failure)))

    def _hold_if_cached(self, load: AdapterLoad) -> bool:
        packed = self._cache.hold(load.digest)
        if packed is None:
            return False
        load.weights = HostWeights.of(packed)
        load.num_elements = load.weights.num_elements
        return True

    def _let_go(self, load: AdapterLoad) -> None:
        """Give back the hold on the host copy."""
        if load.weights is not None:
            load.weights = None
            self._cache.release(load.digest)

    def _may_read(self, load: AdapterLoad) -> bool:
        """What no sequence waits for is read only if there is room for it."""
        return load.failure is None and (
            load.is_awaited or load.num_elements is None or self._may_activate(load)
        )

    def _begin_reads(self) -> None:
        while self._may_begin_read():
            load = self._next_to_read()
            if load is None:
                return
            if not self._hold_if_cached(load):
                load.reading = self._loader.read(load.digest)

    def _may_begin_read(self) -> bool:
        """No more ahead than the host cache holds besides what is there and waits.

        Until its size is known, an adapter is taken to be as large as the largest so far.
        """
        held = [load for load in self._loads.values() if load.reading is not None or load.weights is not None]
        num_reads = sum(load.reading is not None for load in held)
        num_elements = sum(load.num_elements or self._largest_elements for load in held)
        return num_reads < self._loader.max_reads and num_elements < self._cache.capacity

    def _next_to_read(self) -> AdapterLoad | None:
        """In order of first wish, what sequences wait for before the rest."""
        queued = [
            load for load in self._loads.values() if load.stage is Stage.QUEUED and self._may_read(load)
        ]
        return next((load for load in queued if load.is_awaited), queued[0] if queued else None)

    def _follow(self, load: AdapterLoad) -> None:
        """See how far the reading has come. A copy of weights that were given up is given up with them."""
        reading = load.reading
        assert reading is not None, "it is being read"
        is_over = reading.is_over  # asked first: then the weights are the last ones
        weights = reading.weights
        if load.copy is not None and load.copy.weights is not weights:
            self._copies.give_up(load.copy)
            load.copy = None
        load.weights = weights
        if weights is not None:
            load.num_elements = weights.num_elements
            self._largest_elements = max(self._largest_elements, load.num_elements)
        if is_over:
            self._end_reading(load)

    def _end_reading(self, load: AdapterLoad) -> None:
        assert load.reading is not None, "it has been read"
        reading, load.reading = load.reading, None
        if reading.error is not None:
            self._fail(load, reading.error)
        else:
            self._log.was_read(load.digest, reading.seconds)
            if load.is_forgotten:
                self._cache.drop(load.digest)
            if load.copy is not None:
                load.copy.started_s = time.monotonic()  # what went beside the reading took no time
        self._drop_unless_wanted(load)

    def _fail(self, load: AdapterLoad, error: BaseException) -> None:
        """Whatever ended the reading, even a panic of native code, is the affair of this adapter's sequences alone."""
        load.failure = failure_of(error)
        is_foreseen = isinstance(load.failure, AdapterUnavailableError)
        log.log(
            logging.WARNING if is_foreseen else logging.ERROR,
            "an adapter cannot be read",
            extra={"digest": load.digest, "cause": str(error)},
            exc_info=None if is_foreseen else error,
        )

    def _activate(self, load: AdapterLoad, *, may_take_awaited: bool) -> None:
        """Begin to copy a read adapter into a slot, if there is one; it fails where there never will be."""
        assert load.weights is not None, "it has been read"
        if self._copies.is_clearing(load.digest):  # what it held is about to be free
            return
        load.failure = self._too_large(load.weights.num_elements)
        if load.failure is None:
            self._begin_copy(load, may_take_awaited=may_take_awaited)

    def _activate_early(self, load: AdapterLoad) -> None:
        """Begin to copy an adapter before it is its sequence's turn; whoever is waited for keeps the slot."""
        if load.weights is not None:
            self._begin_copy(load, may_take_awaited=False)

    def _begin_copy(self, load: AdapterLoad, *, may_take_awaited: bool) -> None:
        assert load.weights is not None, "its size is known"
        load.copy = self._copies.begin(load.weights, may_take_awaited=may_take_awaited)
        if load.copy is not None:
            load.copy.occupant.is_pinned = load.digest in self._pinned

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

    def _may_activate(self, load: AdapterLoad) -> bool:
        """Whether an operator's adapter would find room, or be told that it never will."""
        assert load.num_elements is not None, "its size is known"
        may_take_awaited = load.digest in self._pinned
        return (
            self._slots.has_room(load.num_elements, may_take_awaited=may_take_awaited)
            or self._too_large(load.num_elements) is not None
        )

    def _activate_for_operators(self) -> None:
        """Pinned adapters before all others, since there are not many; warmed ones behind what sequences wait for."""
        waiting = [load for load in self._loads.values() if load.waits_for_room]
        may_warm = not any(load.is_awaited for load in waiting)
        for load in waiting:
            is_pinned = load.digest in self._pinned
            if load.is_awaited and not is_pinned:
                continue
            if not (is_pinned or may_warm) or not self._may_activate(load):
                if not load.is_awaited:
                    self._let_go(load)  # others may need the host cache before a slot comes free
            elif load.stage is Stage.READ or self._hold_if_cached(load):
                self._activate(load, may_take_awaited=is_pinned)
                self._drop_unless_wanted(load)

    def _publish(self, load: AdapterLoad) -> None:
        """Sequences may use the adapter."""
        assert load.copy is not None, "it was copied somewhere"
        seconds = time.monotonic() - load.copy.started_s
        occupant = load.copy.occupant
        self._copies.publish(load.copy)
        occupant.is_awaited = load.is_awaited
        occupant.is_pinned = load.digest in self._pinned
        occupant.is_forgotten = load.is_forgotten
        self._let_go(load)
        del self._loads[load.digest]
        self._log.was_copied(load.digest, seconds)
        self._evict_if_forgotten(occupant)

    def _evict_if_forgotten(self, occupant: Occupant) -> None:
        if occupant.is_forgotten and occupant.leases == 0 and not occupant.is_copying:
            self._slots.evict(occupant)
