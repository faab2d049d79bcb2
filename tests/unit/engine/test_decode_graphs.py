"""Every step of decodes, and of prompts in single rows, finds a captured shape that holds it; there are few of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraplex_server.engine.gpu_step_inputs import StepInputs, StepPlan, StepShape
from loraplex_server.engine.graph_shapes import GraphShapes, ShapeBuckets
from loraplex_server.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from loraplex_server.engine.sequence import Sequence
from loraplex_server.engine.staging import Staging
from tests.unit.engine.simulation import add_command

MAX_ROWS, MAX_RUNNING, MAX_CONTEXT, BLOCK_SIZE = 4096, 48, 3000, 32
GRAPH_SHAPES = GraphShapes(
    max_rows=MAX_ROWS, max_running=MAX_RUNNING, max_context=MAX_CONTEXT, block_size=BLOCK_SIZE
)
ALL_SHAPES = set(GRAPH_SHAPES.all_shapes())
MAX_SINGLE_ROWS = MAX_RUNNING + 32


@pytest.fixture(scope="module")
def buckets() -> ShapeBuckets:
    return ShapeBuckets(MAX_ROWS, MAX_RUNNING, MAX_CONTEXT, BLOCK_SIZE)


@pytest.fixture(scope="module")
def captured(buckets: ShapeBuckets) -> set[StepShape]:
    return set(buckets.all_shapes())


def batch_of(slots: list[int], lengths: list[int]) -> ScheduledBatch:
    """Decode rows, one per slot (-1 is the base) at a context of that length."""
    batch = ScheduledBatch()
    for number, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        sequence = Sequence.of(add_command(number, [1] * length), number)
        sequence.adapter_slot = slot
        sequence.block_table = list(range(-(-length // BLOCK_SIZE)))
        batch.decodes.append(ScheduledSequence(sequence, length - 1, 1, True, 0, 0))
    batch.sort_by_adapter()
    return batch


def plan_of(slots: list[int], lengths: list[int]) -> StepPlan:
    """Of `batch_of`."""
    return StepPlan(batch_of(slots, lengths), BLOCK_SIZE)


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


@given(
    lengths=st.lists(st.integers(1, MAX_CONTEXT), max_size=MAX_RUNNING - 1),
    chunk=st.integers(1, 2000),
    start=st.integers(0, MAX_CONTEXT - 2000),
    slot=st.integers(-1, 3),
)
def test_a_step_with_a_prefill_fits_a_captured_shape_in_which_its_decodes_attend_as_decodes(
    lengths: list[int], chunk: int, start: int, slot: int
) -> None:
    batch = batch_of([slot] * len(lengths), lengths)
    sequence = Sequence.of(add_command(len(lengths), [1] * (start + chunk)), len(lengths))
    sequence.block_table = list(range(-(-(start + chunk) // BLOCK_SIZE)))
    sequence.adapter_slot = slot
    batch.prefills.append(ScheduledSequence(sequence, start, chunk, True, 0, 0))
    plan = StepPlan(batch, BLOCK_SIZE)

    shape = GRAPH_SHAPES.shape_of(plan)

    assert shape in ALL_SHAPES
    assert shape.rows >= plan.num_rows
    assert shape.decodes >= len(lengths)
    assert shape.sequences >= len(lengths) + 1
    assert shape.max_context >= plan.max_context
    assert shape.row_tiles >= len(plan.row_tiles)
    assert shape.query_tiles >= len(plan.query_tiles) > 0
    assert shape.max_blocks * BLOCK_SIZE >= start + chunk


def test_there_are_few_shapes(captured: set[StepShape]) -> None:
    """vLLM #36370: one graph for each number of active adapters and each batch size took 94 s to capture."""
    assert len(captured) < 190
    of_one_size = Counter((shape.rows, shape.max_context) for shape in captured)
    assert max(of_one_size.values()) <= 10, "any number of adapters is rounded up to one of a few"

    shapes = GraphShapes(max_rows=4096, max_running=256, max_context=131_072, block_size=32).all_shapes()
    assert len(shapes) == len(set(shapes)) < 600
    assert {shape.row_tiles > 0 for shape in shapes} == {True, False}


@given(
    lengths=st.lists(st.integers(1, MAX_CONTEXT), min_size=1, max_size=20),
    prompt=st.none() | st.integers(2, 100),
)
def test_a_step_of_the_base_alone_has_no_lora_work(lengths: list[int], prompt: int | None) -> None:
    """vLLM #9143: --enable-lora alone, with no adapter in use, cut decoding from 27 to 5 tokens/s."""
    batch = batch_of([-1] * len(lengths), lengths)
    if prompt is not None:
        sequence = Sequence.of(add_command(len(lengths), [1] * prompt), len(lengths))
        sequence.block_table = list(range(-(-prompt // BLOCK_SIZE)))
        batch.prefills.append(ScheduledSequence(sequence, 0, prompt, True, 0, 0))
    plan = StepPlan(batch, BLOCK_SIZE)
    assert plan.row_tiles == []

    shape = GRAPH_SHAPES.shape_of(plan)

    assert shape is not None
    assert shape.row_tiles == 0
    staging = Staging(shape.layout().nbytes, torch.device("cpu"))
    assert StepInputs(shape, staging, tables=None).batch.lora is None


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
