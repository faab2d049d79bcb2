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
from typing import Protocol

from loraplex_adapters.errors import LoraplexError
from loraplex_server.engine.block_manager import BlockManager
from loraplex_server.engine.messages import AddSequence, FinishReason, TokenLogprob, TokenOutput
from loraplex_server.engine.prefill_budget import (
    WHOLE_PROMPTS,
    PrefillBudget,
    PrefillSpread,
    background_shares,
    prefill_shares,
)
from loraplex_server.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from loraplex_server.engine.sequence import BASE_SLOT, Sequence

MAX_BYPASSES = 64
"""Admissions that may pass a sequence or a pinned adapter which waits for nothing but a slot; then it goes first."""


BACKGROUND_EVERY = 150
"""Steps between two that begin a background sequence while others run: fewer than 1 in 100, so that the slower steps
stay beyond the 99th percentile of the times between tokens."""


BACKGROUND_AFTER_S = 5.0
"""… or so long since the last one, where steps are long."""


MAX_BROUGHT = 32
"""Sequences behind those that fill a step, whose adapters go on into slots meanwhile."""


class AdapterResidency(Protocol):
    """Where adapters are; see `loraplex_server.engine.adapter_residency`."""

    def prefetch(self, digest: str) -> None: ...

    def cancel_prefetch(self, digest: str) -> None: ...

    def acquire(self, digest: str) -> int | None: ...

    def bring(self, digest: str) -> None: ...

    def release(self, digest: str) -> None: ...

    def is_loading(self, digest: str) -> bool: ...

    def is_pinned(self, digest: str) -> bool: ...

    @property
    def is_pin_waiting(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of a step and of a sequence."""

    max_running: int
    max_batched_tokens: int
    max_context_tokens: int
    prefill: PrefillSpread = WHOLE_PROMPTS  # while others decode


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What the sampler chose for one row."""

    token_id: int
    logprob: TokenLogprob | None = None


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
        self._eos_token_ids = frozenset(eos_token_ids)
        self._clock = clock
        self._waiting: list[Sequence] = []  # in order of admission
        self._running: list[Sequence] = []  # in order of admission
        self._sequences: dict[int, Sequence] = {}
        self._failures: list[TokenOutput] = []
        self._num_admitted = 0
        self._blocked: Sequence | None = None  # oldest that waits for nothing but a slot
        self._num_bypasses = 0
        self._is_pin_waiting = False  # as of the last admissions
        self._steps_without_background = BACKGROUND_EVERY
        self._last_background_s = clock()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

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
        self._waiting.append(sequence)
        if sequence.adapter_digest is not None:
            self._residency.prefetch(sequence.adapter_digest)

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
        self._steps_without_background += 1
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
                self._schedule_row(batch, sequence, 1)
                left -= 1
        return left

    def _schedule_prefills(self, batch: ScheduledBatch, budget: PrefillBudget) -> None:
        """Those under way."""
        for sequence in [s for s in self._running if not s.is_decoding]:
            if budget.left == 0:
                return
            num_tokens = budget.chunk_of(sequence)
            if self._can_go_on(sequence) and self._make_room(batch, sequence, num_tokens):
                self._schedule_row(batch, sequence, num_tokens)
                budget.num_taken += num_tokens

    def _can_go_on(self, sequence: Sequence) -> bool:
        """False if its pending token must be known first: it is surely the last, or the next one depends on it."""
        if sequence.num_pending_tokens == 0:
            return True
        return not (self._is_surely_complete(sequence) or sequence.sampling.depends_on_history)

    def _is_surely_complete(self, sequence: Sequence) -> bool:
        """Whether its last token is known or pending, whatever it is."""
        is_complete = sequence.num_output_tokens >= sequence.sampling.max_tokens
        return is_complete or sequence.num_tokens >= self._limits.max_context_tokens

    def _prefill_budget(self, limit: int) -> PrefillBudget:
        """Of this step, which has room for `limit` rows besides its decodes.

        One that decodes but waits for its pending token counts too: it would find the next step as late.
        """
        spread = self._limits.prefill
        if spread.steps == 1 or not any(
            sequence.is_decoding and not self._is_surely_complete(sequence) for sequence in self._running
        ):
            return PrefillBudget.whole(limit)
        shares = prefill_shares(spread, self._running, self._waiting, self._residency.is_loading)
        return PrefillBudget.shared(limit, spread, shares, background_shares(spread, self._running))

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
        self._release(sequence)
        sequence.num_preemptions += 1
        insort(self._waiting, sequence, key=lambda s: s.order)
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
        """Move waiting sequences into the batch, in order, past those whose adapters are not there yet."""
        self._is_pin_waiting = self._residency.is_pin_waiting
        if self._blocked is None and not self._is_pin_waiting:
            self._num_bypasses = 0
        waiting = list(self._waiting)
        for index, sequence in enumerate(waiting):
            if len(self._running) >= self._limits.max_running:
                return
            if budget.left == 0:
                self._bring_adapters(waiting[index : index + MAX_BROUGHT])
                return
            if sequence.is_background and not self._may_begin_background(batch):
                continue
            is_bypass = self._is_bypass(sequence)
            if is_bypass and self._num_bypasses >= MAX_BYPASSES:
                continue
            if not self._lease_adapter(sequence):
                continue
            num_cached = self._blocks.attach_prefix(sequence)
            sequence.num_tokens_to_prefill = sequence.num_tokens - num_cached
            budget.correct(sequence)
            num_tokens = budget.chunk_of(sequence)
            if not self._reserve(sequence, budget):
                self._release(sequence)
                return  # later ones must not take the blocks that this one waits for
            self._start(sequence, num_cached)
            batch.prefix_hit_tokens += num_cached
            self._schedule_row(batch, sequence, num_tokens)
            budget.num_taken += num_tokens
            if sequence.is_background:
                self._steps_without_background = 0
                self._last_background_s = self._clock()
            if is_bypass:
                self._num_bypasses += 1

    def _bring_adapters(self, sequences: Iterable[Sequence]) -> None:
        """Of those whose turn comes when the prompts before them end: they should not wait for adapters then.

        In their order, so that none goes for the slot of one before it, and none ahead of one that waits for a slot.
        """
        for sequence in sequences:
            if sequence.adapter_digest is None or sequence.is_background:
                continue
            if self._is_bypass(sequence):
                return
            self._residency.bring(sequence.adapter_digest)

    def _reserve(self, sequence: Sequence, budget: PrefillBudget) -> bool:
        """Blocks for all that the step could hold of it: a prompt begun with blocks for its first rows alone might be
        preempted half way, again and again."""
        num_rows = min(sequence.num_tokens_to_prefill, budget.limit - budget.num_taken)
        return self._blocks.extend(sequence, sequence.num_computed_tokens + num_rows)

    def _may_begin_background(self, batch: ScheduledBatch) -> bool:
        """Whether nobody else runs in this step, or enough steps went by for the few that may be slower."""
        is_one_of_them = any(
            row.sequence.is_background for row in batch.prefills
        )  # they share the slower step
        is_due = self._steps_without_background >= BACKGROUND_EVERY
        is_due |= self._clock() - self._last_background_s >= BACKGROUND_AFTER_S
        return batch.num_sequences == 0 or is_one_of_them or is_due

    def _is_bypass(self, sequence: Sequence) -> bool:
        """Whether its adapter would keep a slot busy that an earlier sequence, or a pinned adapter, waits for."""
        digest = sequence.adapter_digest
        if digest is None or self._residency.is_pinned(digest):
            return False
        is_later = self._blocked is not None and sequence.order > self._blocked.order
        return is_later or self._is_pin_waiting

    def _lease_adapter(self, sequence: Sequence) -> bool:
        """A slot for the sequence; False while its adapter loads, no slot is free, or it just failed."""
        digest = sequence.adapter_digest
        if digest is None:
            return True
        try:
            slot = self._residency.acquire(digest)
        except LoraplexError as error:  # all there are; see `AdapterResidency.acquire`
            self._remove(sequence)
            self._fail(sequence, error.reason, str(error))
            return False
        if slot is None:
            if sequence.adapter_wait_started_s is None:
                sequence.adapter_wait_started_s = self._clock()
            is_earliest = self._blocked is None or sequence.order < self._blocked.order
            if is_earliest and not self._residency.is_loading(digest):
                self._blocked = sequence
            return False
        sequence.adapter_slot = slot
        if sequence.first_scheduled_s is None and sequence.adapter_ready_s is None:
            sequence.adapter_ready_s = self._clock()
        return True

    def _start(self, sequence: Sequence, num_cached: int) -> None:
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=lambda s: s.order)
        self._unblock(sequence)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = self._clock()
            sequence.num_cached_prompt_tokens = num_cached

    def _unblock(self, sequence: Sequence) -> None:
        """It waits for a slot no more; whoever does next is passed anew."""
        if sequence is self._blocked:
            self._blocked = None
            if not self._is_pin_waiting:
                self._num_bypasses = 0

    def _schedule_row(self, batch: ScheduledBatch, sequence: Sequence, num_tokens: int) -> None:
        start = sequence.num_computed_tokens
        is_last_chunk = start + num_tokens == sequence.num_tokens
        row = ScheduledSequence(
            sequence, start, num_tokens, is_last_chunk, sequence.num_output_tokens, sequence.num_preemptions
        )
        (batch.decodes if num_tokens == 1 and is_last_chunk else batch.prefills).append(row)

    def _append(self, sequence: Sequence, token: SampledToken, now: float) -> TokenOutput:
        """Add a token to its sequence and end the sequence if that is its last."""
        is_first = not sequence.output_token_ids
        sequence.output_token_ids.append(token.token_id)
        sequence.num_pending_tokens -= 1
        sequence.last_token_s = now
        if is_first:
            sequence.first_token_s = now
        finish_reason = self._finish_reason(sequence, token.token_id)
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

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        sampling = sequence.sampling
        num_output = len(sequence.output_token_ids)
        if num_output >= sampling.min_tokens:
            if token_id in self._eos_token_ids and not sampling.ignore_eos:
                return FinishReason.STOP
            if token_id in sampling.stop_token_ids:
                return FinishReason.STOP
        num_tokens = len(sequence.prompt_token_ids) + num_output
        if num_output >= sampling.max_tokens or num_tokens >= self._limits.max_context_tokens:
            return FinishReason.LENGTH
        return None

    def _release(self, sequence: Sequence) -> None:
        """Give back blocks and the adapter lease."""
        self._blocks.release(sequence)
        if sequence.adapter_slot != BASE_SLOT and sequence.adapter_digest is not None:
            self._residency.release(sequence.adapter_digest)
            sequence.adapter_slot = BASE_SLOT

    def _remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is."""
        self._release(sequence)
        del self._sequences[sequence.sequence_id]
        (self._running if sequence in self._running else self._waiting).remove(sequence)
        self._unblock(sequence)
        digest = sequence.adapter_digest
        if digest is not None and all(other.adapter_digest != digest for other in self._waiting):
            self._residency.cancel_prefetch(digest)

    def _fail(self, sequence: Sequence, reason: str, message: str) -> None:
        self._failures.append(
            TokenOutput(
                sequence.sequence_id,
                [],
                FinishReason.ERROR,
                timings=sequence.timings(),
                error_reason=reason,
                error_message=message,
            )
        )
