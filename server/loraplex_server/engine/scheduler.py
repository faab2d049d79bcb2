"""Continuous batching: waiting and running sequences -> the rows of the next step, and back.

One token budget per step holds decode rows and prefill chunks of any adapters. Decodes come first, then
prefills under way, then the queue in order of arrival. A sequence whose adapter is not resident waits alone;
others pass it, but not for ever. When blocks run out, the sequence that came last gives its own back and is
computed anew later. While others decode, prompts are spread over steps; see `prefill_budget`.

A step may be scheduled before the one ahead of it is committed: the token that is being sampled then counts as
pending, and what turns out to have ended meanwhile is left out when its step is committed.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loraplex_adapters.errors import NOT_FINITE, AdapterInvalidError
from loraplex_server.engine.admission import Admission
from loraplex_server.engine.block_manager import BlockManager
from loraplex_server.engine.messages import AddSequence, FinishReason, TokenOutput
from loraplex_server.engine.prefill_budget import (
    WHOLE_PROMPTS,
    PaddedRows,
    PrefillBudget,
    PrefillSpread,
    background_shares,
    not_padded,
    prefill_shares,
)
from loraplex_server.engine.residency_protocol import AdapterResidency
from loraplex_server.engine.scheduled_batch import NO_TOKEN, SampledToken, ScheduledBatch
from loraplex_server.engine.sequence import Sequence
from loraplex_server.engine.sequence_ends import SequenceEnds
from loraplex_server.errors import SequenceFailedError


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of a step and of a sequence."""

    max_running: int
    max_batched_tokens: int
    max_context_tokens: int
    prefill: PrefillSpread = WHOLE_PROMPTS  # while others decode
    padded_rows: PaddedRows = not_padded


class Scheduler:
    """Owns all sequences. Not thread-safe; the engine's thread owns it."""

    def __init__(
        self,
        limits: SchedulerLimits,
        blocks: BlockManager,
        residency: AdapterResidency,
        eos_token_ids: Iterable[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._blocks = blocks
        self._residency = residency
        self._ends = SequenceEnds(eos_token_ids, limits.max_context_tokens)
        self._clock = clock
        self._admission = Admission(blocks, residency, clock)
        self._running: list[Sequence] = []  # in order of admission
        self._sequences: dict[int, Sequence] = {}
        self._failures: list[TokenOutput] = []
        self._num_admitted = 0

    @property
    def num_waiting(self) -> int:
        return len(self._admission.queue)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def has_work(self) -> bool:
        """True while any sequence waits or runs, or a failure is to be reported."""
        return bool(self._sequences or self._failures)

    def add(self, command: AddSequence) -> None:
        """Queue a sequence; one that can never fit ends with an ERROR output of the next step."""
        sequence = Sequence.of(command, self._num_admitted)
        self._num_admitted += 1
        if not self._can_ever_fit(sequence):
            self._fail(sequence, "CONTEXT_OVERFLOW", "the prompt is longer than the whole key-value cache")
            return
        self._sequences[sequence.sequence_id] = sequence
        self._admission.queue.add(sequence)

    def abort(self, sequence_ids: Iterable[int]) -> list[TokenOutput]:
        """End sequences now; their blocks and leases are free on return. Unknown ids are ignored."""
        outputs = []
        for sequence_id in sequence_ids:
            sequence = self._sequences.get(sequence_id)
            if sequence is not None:
                self._remove(sequence)
                outputs.append(TokenOutput(sequence_id, [], FinishReason.ABORT, timings=sequence.timings()))
        return outputs

    def take_failures(self) -> list[TokenOutput]:
        """Sequences that ended in an error since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def schedule(self) -> ScheduledBatch | None:
        """The next step's rows; None if no sequence can run now.

        At most one earlier step may still be uncommitted. What this step computes counts as computed from now on.
        """
        batch = ScheduledBatch()
        budget = self._prefill_budget(self._schedule_decodes(batch))
        self._schedule_prefills(batch, budget)
        if batch.num_preempted == 0:  # what was just pushed out must not be let in again by its own blocks
            self._admit(batch, budget)
        if batch.num_sequences == 0:
            return None
        self._admission.count_step()
        for row in (*batch.decodes, *batch.prefills):
            row.sequence.num_computed_tokens = row.stop
            row.sequence.num_pending_tokens += row.is_last_chunk
        batch.sort_by_adapter()
        return batch

    def commit(self, batch: ScheduledBatch, sampled: list[SampledToken]) -> list[TokenOutput]:
        """Record what a step computed; `sampled` follows the decodes, then the prefills with a last chunk.

        Steps are committed in the order in which they were scheduled.
        """
        now = self._clock()
        outputs = []
        tokens = iter(sampled)
        for row in (*batch.decodes, *batch.prefills):
            sequence = row.sequence
            token = next(tokens) if row.is_last_chunk else None
            if sequence.sequence_id not in self._sequences:  # it ended after this step was scheduled
                continue
            if row.num_preemptions == sequence.num_preemptions:
                self._blocks.mark_computed(sequence, row.start, row.stop)
            if token is not None:
                outputs.append(self._append(sequence, token, now))
        return outputs

    def _schedule_decodes(self, batch: ScheduledBatch) -> int:
        """Every sequence that can go on; returns the rows left to prompts."""
        left = self._limits.max_batched_tokens
        for sequence in [s for s in self._running if s.is_decoding]:
            if left == 0:
                return 0
            if self._can_go_on(sequence) and self._make_room(batch, sequence, 1):
                batch.add(sequence, 1)
                left -= 1
        return left

    def _schedule_prefills(self, batch: ScheduledBatch, budget: PrefillBudget) -> None:
        """Those under way."""
        for sequence in [s for s in self._running if not s.is_decoding]:
            if budget.left == 0:
                return
            num_tokens = budget.chunk_of(sequence)
            if self._can_go_on(sequence) and self._make_room(batch, sequence, num_tokens):
                batch.add(sequence, num_tokens)
                budget.num_taken += num_tokens

    def _can_go_on(self, sequence: Sequence) -> bool:
        """False if its pending token is surely the last."""
        return sequence.num_pending_tokens == 0 or not self._ends.is_sure(sequence)

    def _prefill_budget(self, limit: int) -> PrefillBudget:
        """Of this step, which has room for `limit` rows besides its decodes."""
        spread = self._limits.prefill
        if spread.steps == 1 or not any(
            sequence.is_decoding and not self._ends.is_sure(sequence) for sequence in self._running
        ):
            return PrefillBudget.whole(limit)
        shares = prefill_shares(spread, self._running, self._admission.queue, self._residency.is_loading)
        return PrefillBudget.shared(
            limit,
            spread,
            shares,
            background_shares(spread, self._running),
            self._limits.max_batched_tokens - limit,
            self._limits.padded_rows,
        )

    def _make_room(self, batch: ScheduledBatch, sequence: Sequence, num_tokens: int) -> bool:
        """Blocks for the row, preempting later arrivals if need be; False if the sequence itself went."""
        if batch.num_preempted and sequence not in self._running:  # it went for a row before this one
            return False
        while not self._blocks.extend(sequence, sequence.num_computed_tokens + num_tokens):
            victim = self._running[-1]
            scheduled = [row for row in (*batch.decodes, *batch.prefills) if row.sequence is victim]
            for row in scheduled:
                (batch.decodes if row in batch.decodes else batch.prefills).remove(row)
            self._preempt(victim)
            batch.num_preempted += 1
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Push a running sequence back into the queue; its tokens are kept, their keys and values are not."""
        self._running.remove(sequence)
        self._admission.give_back(sequence)
        sequence.num_preemptions += 1
        self._admission.queue.add(sequence)
        if sequence.num_pending_tokens == 0:  # else it may have ended by itself; see `_append`
            self._fail_if_too_long(sequence)

    def _fail_if_too_long(self, sequence: Sequence) -> None:
        """End a waiting sequence whose tokens outgrew the whole cache."""
        if not self._can_ever_fit(sequence):
            self._remove(sequence)
            self._fail(sequence, "CONTEXT_OVERFLOW", "the completion outgrew the whole key-value cache")

    def _can_ever_fit(self, sequence: Sequence) -> bool:
        """Whether all blocks together hold its tokens; the one sampled from them needs no place yet."""
        return self._blocks.blocks_for(sequence.num_tokens) <= self._blocks.num_blocks

    def _admit(self, batch: ScheduledBatch, budget: PrefillBudget) -> None:
        admitted = self._admission.admit(batch, budget, self._limits.max_running - len(self._running))
        for sequence in admitted.begun:
            insort(self._running, sequence, key=lambda one: one.order)
        for sequence, error in admitted.failed:
            del self._sequences[sequence.sequence_id]
            self._fail(sequence, error.reason, str(error))

    def _append(self, sequence: Sequence, token: SampledToken, now: float) -> TokenOutput:
        """Add a token to its sequence and end the sequence if that is its last, or none could be chosen."""
        if token.token_id == NO_TOKEN:
            self._remove(sequence)
            return _not_finite(sequence)
        is_first = not sequence.output_token_ids
        sequence.output_token_ids.append(token.token_id)
        sequence.num_pending_tokens -= 1
        sequence.last_token_s = now
        if is_first:
            sequence.first_token_s = now
        finish_reason = self._ends.reason(sequence, token.token_id)
        if finish_reason is not None:
            self._remove(sequence)
        elif not sequence.block_table:  # preempted while its token was pending
            self._fail_if_too_long(sequence)
        return TokenOutput(
            sequence.sequence_id,
            [token.token_id],
            finish_reason,
            [token.logprob] if token.logprob is not None else None,
            sequence.num_cached_prompt_tokens if is_first else 0,
            sequence.timings() if is_first or finish_reason is not None else None,
        )

    def _remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is."""
        self._admission.give_back(sequence)
        del self._sequences[sequence.sequence_id]
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._admission.leave(sequence)

    def _fail(self, sequence: Sequence, reason: str, message: str) -> None:
        self._failures.append(_error(sequence, reason, message))


def _not_finite(sequence: Sequence) -> TokenOutput:
    """The end of a sequence whose logits are not all numbers: never an answer that nothing stands behind."""
    if sequence.adapter_digest is None:
        return _error(sequence, SequenceFailedError.reason, "the base's logits are not finite numbers")
    return _error(sequence, AdapterInvalidError.reason, NOT_FINITE)


def _error(sequence: Sequence, reason: str, message: str) -> TokenOutput:
    return TokenOutput(
        sequence.sequence_id,
        [],
        FinishReason.ERROR,
        timings=sequence.timings(),
        error_reason=reason,
        error_message=message,
    )
