"""Every step of decodes, and of prompts in single rows, finds a captured shape that holds it; there are few of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_server.engine.gpu_step_inputs import StepPlan, StepShape
from loraplex_server.engine.graph_shapes import ShapeBuckets
from loraplex_server.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from loraplex_server.engine.sequence import Sequence
from tests.unit.engine.simulation import add_command

MAX_ROWS, MAX_RUNNING, MAX_CONTEXT, BLOCK_SIZE = 4096, 48, 3000, 32
MAX_SINGLE_ROWS = MAX_RUNNING + 32


@pytest.fixture(scope="module")
def buckets() -> ShapeBuckets:
    return ShapeBuckets(MAX_ROWS, MAX_RUNNING, MAX_CONTEXT, BLOCK_SIZE)


@pytest.fixture(scope="module")
def captured(buckets: ShapeBuckets) -> set[StepShape]:
    return set(buckets.all_shapes())


def plan_of(slots: list[int], lengths: list[int]) -> StepPlan:
    """Decode rows, one per slot (-1 is the base) at a context of that length."""
    batch = ScheduledBatch()
    for number, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        sequence = Sequence.of(add_command(number, [1] * length), number)
        sequence.adapter_slot = slot
        sequence.block_table = list(range(-(-length // BLOCK_SIZE)))
        batch.decodes.append(ScheduledSequence(sequence, length - 1, 1, True, 0, 0))
    batch.sort_by_adapter()
    return StepPlan(batch, BLOCK_SIZE)


@given(
    rows=st.lists(
        st.tuples(st.integers(-1, 20), st.integers(1, MAX_CONTEXT)), min_size=1, max_size=MAX_SINGLE_ROWS
    )
)
def test_a_step_of_single_rows_fits_a_captured_shape(
    buckets: ShapeBuckets, captured: set[StepShape], rows: list[tuple[int, int]]
) -> None:
    plan = plan_of([slot for slot, _ in rows], [length for _, length in rows])

    shape = buckets.shape_of(plan)

    assert shape in captured
    assert shape.rows >= plan.num_rows
    assert shape.row_tiles >= len(plan.row_tiles)
    assert (shape.row_tiles > 0) == (len(plan.row_tiles) > 0), "the base alone pays for no adapter"
    assert shape.max_context >= plan.max_context
    assert shape.max_blocks * BLOCK_SIZE >= plan.max_context


def test_there_are_few_shapes(captured: set[StepShape]) -> None:
    assert len(captured) < 190


def test_a_full_batch_of_decodes_takes_rows_of_prompts_along_unless_the_step_is_smaller() -> None:
    def rows_of(max_rows: int) -> list[int]:
        buckets = ShapeBuckets(max_rows, 100, MAX_CONTEXT, BLOCK_SIZE)
        rows = sorted({shape.rows for shape in buckets.all_shapes()})
        assert rows[-1] == buckets.max_rows
        return rows[-4:]

    assert rows_of(4096) == [96, 100, 128, 132]
    assert rows_of(112) == [64, 96, 100, 112]
    assert rows_of(100) == [48, 64, 96, 100]


def test_the_tiles_of_a_plan_cover_every_row_once() -> None:
    plan = plan_of([3] * 20 + [-1, 5], [7] * 22)

    covered = sorted(
        row for tile in plan.row_tiles for row in range(tile.row_start, tile.row_start + tile.num_rows)
    )

    assert covered == list(range(22))
