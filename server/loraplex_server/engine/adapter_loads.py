"""Every adapter on its way: from a wish to the moment when sequences may use it.

It is read by threads, and copied into a slot while it is still being read. It is published between steps, once all of
it was found sound and its copy is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from loraplex_adapters.errors import AdapterUnavailableError
from loraplex_server.engine.adapter_copies import AdapterCopies
from loraplex_server.engine.adapter_load import AdapterLoad, Stage, failure_of
from loraplex_server.engine.adapter_reads import AdapterReads
from loraplex_server.engine.adapter_slots import AdapterSlots
from loraplex_server.engine.messages import AdapterLoadFailure
from loraplex_server.engine.residency_events import ResidencyLog

log = logging.getLogger(__name__)


class AdapterLoads:
    """Owned by the engine's thread. What nobody wants any more is dropped, unless it goes on by itself."""

    def __init__(
        self, slots: AdapterSlots, copies: AdapterCopies, reads: AdapterReads, events: ResidencyLog
    ) -> None:
        self._slots = slots
        self._copies = copies
        self._reads = reads
        self._log = events
        self._loads: dict[str, AdapterLoad] = {}  # in order of first wish

    def __iter__(self) -> Iterator[AdapterLoad]:
        """As of now: what begins or ends meanwhile changes nothing."""
        return iter(list(self._loads.values()))

    def get(self, digest: str) -> AdapterLoad | None:
        """None for an adapter that is not on its way."""
        return self._loads.get(digest)

    def want(self, digest: str) -> AdapterLoad:
        """The load of an adapter that is in no slot; begun if there is none."""
        load = self._loads.get(digest)
        if load is None:
            load = self._loads[digest] = AdapterLoad(digest)
            self._reads.hold_if_cached(load)
            self._begin_reads()
        load.is_forgotten = False
        return load

    def take_turn(self, digest: str) -> None:
        """A sequence could begin with the adapter: copy it, though others that come later lose their slot for it.

        Raises why it was not loaded, or never will be; then the load has ended.
        """
        load = self.want(digest)
        load.is_awaited = True
        if load.stage is Stage.READ:
            self._activate(load, may_take_awaited=True)
        elif load.stage is Stage.READING:
            self._activate_early(load)
        if load.failure is not None:
            self._give_up(load)
            raise load.failure

    def bring(self, digest: str) -> None:
        """A sequence will need it soon: copy it, if the slot can be had from nobody who is waited for."""
        load = self._loads.get(digest)
        if load is not None and load.stage in (Stage.READING, Stage.READ):
            self._activate_early(load)

    def unwant(self, digest: str, *, is_forgotten: bool = False) -> None:
        """No sequence waits for it; and nobody else either, if it `is_forgotten`."""
        load = self._loads.get(digest)
        if load is None:
            return
        load.is_awaited = False
        if is_forgotten:
            load.is_warming = False
            load.is_forgotten = True
        self._drop_unless_wanted(load)

    def drop_unwanted(self) -> None:
        """Others are pinned now."""
        for load in self:
            self._drop_unless_wanted(load)

    def advance(self) -> None:
        """Take what has been read, publish what has been copied, begin what can begin. Never waits."""
        self._slots.forget_wanted_run()
        if self._copies.clear():
            self._log.was_withdrawn()
        for load in self:
            if load.reading is not None:
                self._follow(load)
            if load.can_be_published:
                self._publish(load)
        self._activate_for_operators()
        self._begin_reads()

    @property
    def num_wanted(self) -> int:
        """Adapters that somebody wants and that are not in their slot yet."""
        return sum(map(self._is_wanted, self))

    @property
    def is_busy(self) -> bool:
        """True while one goes on by itself, so that `advance` may soon find news."""
        return self._copies.is_busy or any(
            load.is_under_way
            or (self._may_read(load) if load.stage is Stage.QUEUED else self._may_activate(load))
            for load in self
            if not (load.is_awaited and load.stage is Stage.READ)
        )

    @property
    def is_pin_waiting(self) -> bool:
        """Whether a pinned adapter waits for nothing but a slot."""
        return any(load.waits_for_room and self._slots.is_pinned(load.digest) for load in self)

    def _is_wanted(self, load: AdapterLoad) -> bool:
        return load.is_awaited or load.is_warming or self._slots.is_pinned(load.digest)

    def _drop_unless_wanted(self, load: AdapterLoad) -> None:
        """What is being read or copied goes on: the one ends in the host cache, the other in the slot."""
        if load.is_under_way:
            return
        has_failed_for_nobody = load.failure is not None and not load.is_awaited
        if has_failed_for_nobody or not self._is_wanted(load):
            self._give_up(load)

    def _give_up(self, load: AdapterLoad) -> None:
        """Operators learn why, if that is a failure of what they asked for."""
        self._reads.let_go(load)
        del self._loads[load.digest]
        if load.failure is not None and (load.is_warming or self._slots.is_pinned(load.digest)):
            self._log.has_failed(AdapterLoadFailure(load.digest, load.failure.reason, str(load.failure)))

    def _begin_reads(self) -> None:
        self._reads.begin(list(self), self._may_read)

    def _may_read(self, load: AdapterLoad) -> bool:
        """What no sequence waits for is read only if there is room for it."""
        return load.failure is None and (
            load.is_awaited or load.num_elements is None or self._may_activate(load)
        )

    def _follow(self, load: AdapterLoad) -> None:
        """See how far the reading has come. A copy of weights that were given up is given up with them."""
        reading = load.reading
        assert reading is not None, "it is being read"
        is_over = reading.is_over  # asked first: then the weights are the last ones
        weights = reading.weights
        if load.copy is not None and load.copy.weights is not weights:
            self._copies.give_up(load.copy)
            load.copy = None
        self._reads.take(load, weights)
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
                self._reads.drop(load.digest)
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
        load.failure = self._slots.refusal(load.weights.num_elements)
        if load.failure is None:
            self._begin_copy(load, may_take_awaited=may_take_awaited)

    def _activate_early(self, load: AdapterLoad) -> None:
        """Begin to copy an adapter before it is its sequence's turn; whoever is waited for keeps the slot."""
        if load.weights is not None:
            self._begin_copy(load, may_take_awaited=False)

    def _begin_copy(self, load: AdapterLoad, *, may_take_awaited: bool) -> None:
        assert load.weights is not None, "its size is known"
        load.copy = self._copies.begin(load.weights, may_take_awaited=may_take_awaited)

    def _may_activate(self, load: AdapterLoad) -> bool:
        """Whether an operator's adapter would find room, or be told that it never will."""
        assert load.num_elements is not None, "its size is known"
        may_take_awaited = self._slots.is_pinned(load.digest)
        return (
            self._slots.has_room(load.num_elements, may_take_awaited=may_take_awaited)
            or self._slots.refusal(load.num_elements) is not None
        )

    def _activate_for_operators(self) -> None:
        """Pinned adapters before all others, since there are not many; warmed ones behind what sequences wait for."""
        waiting = [load for load in self if load.waits_for_room]
        may_warm = not any(load.is_awaited for load in waiting)
        for load in waiting:
            is_pinned = self._slots.is_pinned(load.digest)
            if load.is_awaited and not is_pinned:
                continue
            if not (is_pinned or may_warm) or not self._may_activate(load):
                if not load.is_awaited:
                    self._reads.let_go(load)  # others may need the host cache before a slot comes free
            elif load.stage is Stage.READ or self._reads.hold_if_cached(load):
                self._activate(load, may_take_awaited=is_pinned)
                self._drop_unless_wanted(load)

    def _publish(self, load: AdapterLoad) -> None:
        """Sequences may use the adapter."""
        assert load.copy is not None, "it was copied somewhere"
        seconds = time.monotonic() - load.copy.started_s
        occupant = load.copy.occupant
        self._copies.publish(load.copy)
        occupant.is_awaited = load.is_awaited
        occupant.is_forgotten = load.is_forgotten
        self._reads.let_go(load)
        del self._loads[load.digest]
        self._log.was_copied(load.digest, seconds)
        self._slots.evict_if_forgotten(occupant)
