"""Where each adapter is, and how it comes to where it is needed: arena ← host cache ← disk, none of it in a step's way.

Reading happens in threads. What is read and checked is copied into the arena while the rest is still being read: queued
between steps and beside them, with a bound on the bytes ahead. An adapter is published between steps, once all of it
was found sound and its copy is over. The engine's thread owns everything here. An adapter on its way delays only the
sequences that name it.
"""

from __future__ import annotations

from loraplex_server.engine.adapter_arena import AdapterMemory
from loraplex_server.engine.adapter_copies import AdapterCopies
from loraplex_server.engine.adapter_load import Stage
from loraplex_server.engine.adapter_loader import AdapterLoader, AdapterReader
from loraplex_server.engine.adapter_loads import AdapterLoads
from loraplex_server.engine.adapter_reads import AdapterReads
from loraplex_server.engine.adapter_slots import AdapterSlots
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.engine.messages import Tier
from loraplex_server.engine.residency_events import ResidencyEvents, ResidencyLog

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
        self._log = ResidencyLog()
        self._loads = AdapterLoads(self._slots, self._copies, AdapterReads(self._loader, cache), self._log)

    # What sequences ask for.

    def prefetch(self, digest: str) -> None:
        """A sequence waits for the adapter, until `cancel_prefetch`: bring it on its way, or let it stay there."""
        occupant = self._slots.active(digest)
        if occupant is None:
            self._loads.want(digest).is_awaited = True
        else:
            occupant.is_awaited = True
            occupant.is_forgotten = False

    def cancel_prefetch(self, digest: str) -> None:
        """No sequence waits for the adapter any more: those that did run with it, or have ended."""
        occupant = self._slots.active(digest)
        if occupant is not None:
            occupant.is_awaited = False
        self._loads.unwant(digest)

    def acquire(self, digest: str) -> int | None:
        """Lease the adapter for one running sequence and return its slot.

        None while it is on its way or while every slot that could be freed for it is in use.
        Raises AdapterUnavailableError when its package cannot be read, SequenceFailedError when loading it failed for
        another reason, AdapterTooLargeError when the arena, or what pinned adapters leave of it, is smaller; a later
        request tries again.
        """
        occupant = self._slots.active(digest)
        if occupant is None:
            self._loads.take_turn(digest)
            return None
        occupant.leases += 1
        self._slots.touch(occupant)
        return occupant.slot

    def bring(self, digest: str) -> None:
        """A sequence that waits for something else will need the adapter: let it go on into a slot, if it can be had
        from nobody who is waited for.
        """
        self._loads.bring(digest)

    def release(self, digest: str) -> None:
        """Give one lease back."""
        occupant = self._slots.active(digest)
        assert occupant is not None, "a lease of an adapter that is not there"
        occupant.leases -= 1
        self._slots.evict_if_forgotten(occupant)

    def is_loading(self, digest: str) -> bool:
        """True while the adapter is read or copied; False once it waits for nothing but a slot."""
        load = self._loads.get(digest)
        return load is not None and load.failure is None and load.stage is not Stage.READ

    def is_pinned(self, digest: str) -> bool:
        """Whether it is never evicted, so that its sequences keep nobody else from a slot."""
        return self._slots.is_pinned(digest)

    # What operators ask for.

    def warm(self, digest: str) -> None:
        """Load the adapter into a slot, when one can be had, though no sequence waits for it."""
        if self._slots.active(digest) is None:
            self._loads.want(digest).is_warming = True

    def pin(self, digests: list[str]) -> None:
        """From now on these, and no others, are never evicted. Those that are not there are loaded."""
        self._slots.pin(digests)
        self._loads.drop_unwanted()
        for digest in digests:
            if self._slots.active(digest) is None:
                self._loads.want(digest)

    def forget(self, digest: str) -> None:
        """No new sequence will name this digest: it leaves its slot when it is idle, and the host cache."""
        self._cache.drop(digest)
        self._slots.forget(digest)
        self._loads.unwant(digest, is_forgotten=True)

    # What the engine does between steps.

    def advance(self) -> None:
        """Take what has been read, publish what has been copied, begin what can begin. Never waits."""
        self._loads.advance()

    def copy(self, *, is_idle: bool) -> None:
        """Queue the copies of one step; all there are if no step runs or comes (`is_idle`)."""
        room = self._copies.queue(is_idle=is_idle)
        room = min(room, max(1, _MAX_MOVED_BYTES // self._arena.element_bytes))
        if room > 0:
            self._log.was_compacted(self._slots.compact(room) * self._arena.element_bytes)

    @property
    def has_copies_to_queue(self) -> bool:
        """Whether `copy_beside_step` may find something to do, now or when more is read."""
        return self._copies.has_more_to_queue

    def copy_beside_step(self) -> None:
        """Queue copies while a step runs. Nothing moves within the arena, which would be in the next step's way."""
        self._copies.queue(is_idle=False)

    @property
    def is_busy(self) -> bool:
        """True while something is under way that goes on by itself, so that `advance` may soon find news."""
        return self._slots.is_compacting or self._loads.is_busy

    @property
    def has_news(self) -> bool:
        """Whether an adapter has moved, or could not be loaded, since the last `take_events`."""
        return bool(self._slots.evicted) or not self._log.is_empty

    @property
    def is_pin_waiting(self) -> bool:
        """Whether a pinned adapter waits for nothing but a slot."""
        return self._loads.is_pin_waiting

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
        return self._loads.num_wanted

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
