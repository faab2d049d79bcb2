"""Which of the waiting sequences begin in a step: in order, past those whose adapters are not there yet.

One that begins has a lease on its adapter and blocks for all that the step could hold of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from loraplex_adapters.errors import LoraplexError
from loraplex_server.engine.background_pace import BackgroundPace
from loraplex_server.engine.block_manager import BlockManager
from loraplex_server.engine.prefill_budget import PrefillBudget
from loraplex_server.engine.residency_protocol import AdapterResidency
from loraplex_server.engine.scheduled_batch import ScheduledBatch
from loraplex_server.engine.sequence import BASE_SLOT, Sequence
from loraplex_server.engine.slot_turns import SlotTurns
from loraplex_server.engine.waiting_queue import WaitingQueue

MAX_BROUGHT = 32
"""Sequences behind those that fill a step, whose adapters go on into slots meanwhile."""


@dataclass(slots=True)
class Admitted:
    """What became of waiting sequences in one step."""

    begun: list[Sequence] = field(default_factory=list)
    failed: list[tuple[Sequence, LoraplexError]] = field(
        default_factory=list
    )  # of the adapter; they hold nothing


class Admission:
    """Owns the queue, and takes and gives back what running sequences hold. Used by the engine's thread."""

    def __init__(self, blocks: BlockManager, residency: AdapterResidency, clock: Callable[[], float]) -> None:
        self._blocks = blocks
        self._residency = residency
        self._clock = clock
        self.queue = WaitingQueue(residency)
        self._turns = SlotTurns(residency)
        self._background = BackgroundPace(clock)

    def admit(self, batch: ScheduledBatch, budget: PrefillBudget, num_places: int) -> Admitted:
        """Move sequences from the queue into the batch, no more than `num_places`; others leave it since they fail."""
        self._turns.begin()
        admitted = Admitted()
        waiting = list(self.queue)
        for index, sequence in enumerate(waiting):
            if len(admitted.begun) >= num_places:
                break
            if budget.left == 0:
                self._bring_adapters(waiting[index : index + MAX_BROUGHT])
                break
            if sequence.is_background and not self._background.may_begin(batch):
                continue
            is_bypass = self._turns.is_bypass(sequence)
            if is_bypass and not self._turns.may_bypass:
                continue
            try:
                has_lease = self._lease_adapter(sequence)
            except LoraplexError as error:
                self.leave(sequence)
                admitted.failed.append((sequence, error))
                continue
            if not has_lease:
                continue
            if not self._begin(sequence, batch, budget):
                break  # later ones must not take the blocks that this one waits for
            admitted.begun.append(sequence)
            if is_bypass:
                self._turns.has_passed()
        return admitted

    def count_step(self) -> None:
        """A step was made, with or without admissions."""
        self._background.count_step()

    def leave(self, sequence: Sequence) -> None:
        """A waiting sequence begins, or has ended."""
        self.queue.remove(sequence)
        self._turns.leave(sequence)

    def give_back(self, sequence: Sequence) -> None:
        """Blocks and adapter lease of a sequence, if it has them."""
        self._blocks.release(sequence)
        if sequence.adapter_slot != BASE_SLOT and sequence.adapter_digest is not None:
            self._residency.release(sequence.adapter_digest)
            sequence.adapter_slot = BASE_SLOT

    def _lease_adapter(self, sequence: Sequence) -> bool:
        """A slot for the sequence; False while its adapter loads or no slot is free. Raises what
        `AdapterResidency.acquire` raises."""
        digest = sequence.adapter_digest
        if digest is None:
            return True
        slot = self._residency.acquire(digest)
        if slot is None:
            if sequence.adapter_wait_started_s is None:
                sequence.adapter_wait_started_s = self._clock()
            if not self._residency.is_loading(digest):
                self._turns.waits_for_slot(sequence)
            return False
        sequence.adapter_slot = slot
        if sequence.first_scheduled_s is None and sequence.adapter_ready_s is None:
            sequence.adapter_ready_s = self._clock()
        return True

    def _begin(self, sequence: Sequence, batch: ScheduledBatch, budget: PrefillBudget) -> bool:
        """Schedule the first rows of a sequence that has its lease; False, and the lease is given back, if blocks are
        short."""
        num_cached = self._blocks.attach_prefix(sequence)
        sequence.num_tokens_to_prefill = sequence.num_tokens - num_cached
        budget.correct(sequence)
        num_tokens = budget.chunk_of(sequence)
        if not self._reserve(sequence, budget):
            self.give_back(sequence)
            return False
        self.leave(sequence)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = self._clock()
            sequence.num_cached_prompt_tokens = num_cached
        batch.prefix_hit_tokens += num_cached
        batch.add(sequence, num_tokens)
        budget.num_taken += num_tokens
        if sequence.is_background:
            self._background.has_begun()
        return True

    def _reserve(self, sequence: Sequence, budget: PrefillBudget) -> bool:
        """Blocks for all that the step could hold of it: a prompt begun with blocks for its first rows alone might be
        preempted half way, again and again."""
        num_rows = min(sequence.num_tokens_to_prefill, budget.limit - budget.num_taken)
        return self._blocks.extend(sequence, sequence.num_computed_tokens + num_rows)

    def _bring_adapters(self, sequences: Iterable[Sequence]) -> None:
        """Of those whose turn comes when the prompts before them end: they should not wait for adapters then.

        In their order, so that none goes for the slot of one before it, and none ahead of one that waits for a slot.
        """
        for sequence in sequences:
            if sequence.adapter_digest is None or sequence.is_background:
                continue
            if self._turns.is_bypass(sequence):
                return
            self._residency.bring(sequence.adapter_digest)
