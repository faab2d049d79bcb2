"""A step with short chunks, told as decodes: every token once, what is sampled first, adapters together."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from loraplex_server.engine.gpu_step_inputs import StepPlan
from loraplex_server.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from loraplex_server.engine.sequence import BASE_SLOT, Sequence
from loraplex_server.engine.single_rows import MAX_READS, as_single_rows, is_worth_single_rows
from tests.unit.engine.simulation import add_command

BLOCK_SIZE = 4

Chunk = tuple[int, int, int, int]  # slot, start, tokens, tokens of the prompt behind them


def batch_of(decodes: list[tuple[int, int]], chunks: list[Chunk]) -> ScheduledBatch:
    """Of decodes (slot, context) and chunks, as the scheduler gives it."""
    batch = ScheduledBatch()
    for number, (slot, start, num_tokens, num_left) in enumerate(
        [*((slot, length - 1, 1, 0) for slot, length in decodes), *chunks]
    ):
        stop = start + num_tokens
        sequence = Sequence.of(
            add_command(number, [100 * number + p for p in range(stop + num_left)]), number
        )
        sequence.adapter_slot = slot
        sequence.block_table = [1000 * number + block for block in range(-(-stop // BLOCK_SIZE))]
        row = ScheduledSequence(sequence, start, num_tokens, num_left == 0, output_index=0, num_preemptions=0)
        (batch.decodes if num_tokens == 1 and row.is_last_chunk else batch.prefills).append(row)
    batch.sort_by_adapter()
    return batch


SLOTS = st.integers(BASE_SLOT, 3)
BATCHES = st.builds(
    batch_of,
    st.lists(st.tuples(SLOTS, st.integers(1, 30)), max_size=8),
    st.lists(
        st.tuples(SLOTS, st.integers(0, 20), st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=4
    ),
)


@given(batch=BATCHES)
def test_it_computes_the_same_tokens_in_the_same_places_and_samples_the_same_rows(
    batch: ScheduledBatch,
) -> None:
    whole, single = StepPlan(batch, BLOCK_SIZE), StepPlan(as_single_rows(batch), BLOCK_SIZE)

    assert single.prefills == []
    assert sorted(zip(*single.rows({}), strict=True)) == sorted(zip(*whole.rows({}), strict=True))
    assert [row.sequence for row in single.sampled] == [row.sequence for row in whole.sampled]
    assert single.sampled == single.decodes[: len(single.sampled)]
    assert single.logit_rows == list(range(len(whole.sampled)))
    assert [row.stop for row in single.sampled] == [row.stop for row in whole.sampled]


@given(batch=BATCHES)
def test_each_row_has_the_pages_of_its_own_context(batch: ScheduledBatch) -> None:
    plan = StepPlan(as_single_rows(batch), BLOCK_SIZE)
    _, positions, kv_slots = plan.rows({})

    for row, table, position, kv_slot in zip(
        plan.decodes, plan.block_tables(), positions, kv_slots, strict=True
    ):
        assert row.stop == position + 1
        assert len(table) == position // BLOCK_SIZE + 1
        assert kv_slot == table[-1] * BLOCK_SIZE + position % BLOCK_SIZE


@given(batch=BATCHES)
def test_rows_of_one_adapter_stand_together_as_far_as_sampling_lets_them(batch: ScheduledBatch) -> None:
    def num_runs(rows: list[ScheduledSequence]) -> int:
        return len(list(groupby(row.sequence.adapter_slot for row in rows)))

    single = as_single_rows(batch)
    plan = StepPlan(single, BLOCK_SIZE)
    rest = single.decodes[len(plan.sampled) :]
    rest_slots = {row.sequence.adapter_slot for row in rest}

    assert num_runs(rest) == len(rest_slots)
    joined = bool(plan.sampled) and plan.sampled[-1].sequence.adapter_slot in rest_slots
    assert num_runs(single.decodes) == num_runs(plan.sampled) + len(rest_slots) - joined


def test_a_prompt_of_one_adapter_is_one_run() -> None:
    single = as_single_rows(batch_of([(BASE_SLOT, 5), (2, 7)], [(1, 0, 9, 0)]))

    assert [row.sequence.adapter_slot for row in single.decodes] == [BASE_SLOT, 2] + [1] * 9
    assert [row.start for row in single.decodes] == [4, 6, 8, *range(8)]


def test_it_is_worth_it_while_the_rows_fit_and_their_contexts_are_short() -> None:
    decodes = [(0, 2000)] * 10
    rows, context = 32, MAX_READS // 32

    assert is_worth_single_rows(batch_of(decodes, [(0, 0, rows, 5)]), max_rows=42)
    assert not is_worth_single_rows(batch_of(decodes, [(0, 0, rows, 5)]), max_rows=41)
    assert is_worth_single_rows(batch_of(decodes, [(0, context - rows, rows, 5)]), max_rows=42)
    assert not is_worth_single_rows(batch_of(decodes, [(0, context + rows, rows, 5)]), max_rows=42)
