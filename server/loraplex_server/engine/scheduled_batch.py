"""The rows of one step, and what is sampled from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from loraplex_server.engine.messages import TokenLogprob
from loraplex_server.engine.sequence import BASE_SLOT, Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The part of a sequence that a step computes: tokens [start, start + num_tokens)."""

    sequence: Sequence
    start: int
    num_tokens: int
    is_last_chunk: bool  # its newest token is among them, so a next one is sampled
    output_index: int  # place in the completion of the token that is sampled
    num_preemptions: (
        int  # of the sequence at that time; one more since, and these blocks are no longer its own
    )

    @property
    def stop(self) -> int:
        """Tokens of the sequence that are computed after the step."""
        return self.start + self.num_tokens


@dataclass(slots=True)
class ScheduledBatch:
    """Decode rows first, then prefill chunks; within each, rows of one adapter stand together."""

    decodes: list[ScheduledSequence] = field(default_factory=list)
    prefills: list[ScheduledSequence] = field(default_factory=list)
    num_preempted: int = 0
    prefix_hit_tokens: int = 0

    @property
    def num_sequences(self) -> int:
        return len(self.decodes) + len(self.prefills)

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(row.num_tokens for row in self.prefills)

    @property
    def adapter_slots(self) -> set[int]:
        """Distinct adapter slots in the batch; the base needs none."""
        slots = {row.sequence.adapter_slot for row in (*self.decodes, *self.prefills)}
        return slots - {BASE_SLOT}

    def add(self, sequence: Sequence, num_tokens: int) -> None:
        """The sequence's next tokens, as a decode or as a prefill chunk."""
        start = sequence.num_computed_tokens
        is_last_chunk = start + num_tokens == sequence.num_tokens
        row = ScheduledSequence(
            sequence, start, num_tokens, is_last_chunk, sequence.num_output_tokens, sequence.num_preemptions
        )
        (self.decodes if num_tokens == 1 and is_last_chunk else self.prefills).append(row)

    def sort_by_adapter(self) -> None:
        """Make the rows of one adapter adjacent, so that each adapter is one segment of each part."""
        for rows in (self.decodes, self.prefills):
            rows.sort(key=lambda row: row.sequence.adapter_slot)


NO_TOKEN = -1
"""In place of a token where logits are not all numbers."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What the sampler chose for one row."""

    token_id: int  # or NO_TOKEN
    logprob: TokenLogprob | None = None
