"""Short prefill chunks as rows of a decode step: each token of a prompt is a row with a context of its own.

All rows' keys and values are in the pages before any row attends, in every layer, so a token finds those before it in
its chunk. The step then runs as a decode graph, whose attention and LoRA are made for few rows. Its attention reads
the pages of a context once for every row, which bounds how much of a prompt is worth it.
"""

from __future__ import annotations

from loraplex_server.engine.scheduled_batch import ScheduledBatch, ScheduledSequence

MAX_READS = 16_384
"""Tokens of context that all rows of prompts together may read."""


def is_worth_single_rows(batch: ScheduledBatch, max_rows: int) -> bool:
    """Whether a batch with prefills fits a decode step of at most `max_rows` rows, and its contexts are short."""
    reads = sum(row.num_tokens * (row.start + 1 + row.stop) // 2 for row in batch.prefills)
    return batch.num_tokens <= max_rows and reads <= MAX_READS


def as_single_rows(batch: ScheduledBatch) -> ScheduledBatch:
    """The same step of decodes alone.

    The rows that are sampled stay first, in the order in which `Scheduler.commit` expects their tokens: decodes, then
    the last tokens of prompts. The others follow, those first whose adapter is that of the row before them.
    """
    last = [_row(chunk, chunk.stop - 1) for chunk in batch.prefills if chunk.is_last_chunk]
    sampled = [*batch.decodes, *last]
    rest = [
        _row(chunk, position)
        for chunk in batch.prefills
        for position in range(chunk.start, chunk.stop - chunk.is_last_chunk)
    ]
    if sampled:
        slot = sampled[-1].sequence.adapter_slot
        rest.sort(key=lambda row: row.sequence.adapter_slot != slot)
    return ScheduledBatch([*sampled, *rest], [], batch.num_preempted, batch.prefix_hit_tokens)


def _row(chunk: ScheduledSequence, position: int) -> ScheduledSequence:
    is_last = chunk.is_last_chunk and position == chunk.stop - 1
    return ScheduledSequence(chunk.sequence, position, 1, is_last, chunk.output_index, chunk.num_preemptions)
