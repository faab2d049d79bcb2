"""Every step of decodes, and of prompts in single rows, finds a captured shape that holds it; there are few of them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.shapes import SHAPES
from loraplex_server.engine.gpu_step_inputs import StepInputs, StepPlan, StepShape
from loraplex_server.engine.graph_shapes import GraphShapes, ShapeBuckets
from loraplex_server.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from loraplex_server.engine.sequence import Sequence
from loraplex_server.engine.staging import Staging
from loraplex_server.kernels.decode_attention import num_parts as attention_parts
from loraplex_server.kernels.lora_cuda import num_parts, plan_ints
from loraplex_server.kernels.lora_scratch import max_rank_groups, num_splits
from loraplex_server.kernels.lora_tables import (
    LARGE_TILE_ROWS,
    SMALL_TILE_ROWS,
    SMALL_TILES_UP_TO,
    RowTile,
)
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.gpu_decoder import projection_shapes
from loraplex_server.model.gpu_workspace import GpuWorkspace
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
    decodes=st.lists(st.tuples(st.integers(-1, 60), st.integers(1, MAX_CONTEXT)), max_size=MAX_RUNNING - 4),
    chunks=st.lists(
        st.tuples(st.integers(-1, 60), st.integers(1, 500), st.integers(0, MAX_CONTEXT - 500)),
        min_size=1,
        max_size=4,
    ),
)
def test_a_step_with_prefills_fits_a_captured_shape_in_which_its_decodes_attend_as_decodes(
    decodes: list[tuple[int, int]], chunks: list[tuple[int, int, int]]
) -> None:
    batch = batch_of([slot for slot, _ in decodes], [length for _, length in decodes])
    for number, (slot, size, start) in enumerate(chunks, start=len(decodes)):
        sequence = Sequence.of(add_command(number, [1] * (start + size)), number)
        sequence.block_table = list(range(-(-(start + size) // BLOCK_SIZE)))
        sequence.adapter_slot = slot
        batch.prefills.append(ScheduledSequence(sequence, start, size, True, 0, 0))
    plan = StepPlan(batch, BLOCK_SIZE)

    shape = GRAPH_SHAPES.shape_of(plan)

    assert shape in ALL_SHAPES
    assert shape.rows >= plan.num_rows
    assert shape.decodes >= len(decodes)
    assert shape.sequences >= len(decodes) + len(chunks)
    assert shape.row_tiles >= len(plan.row_tiles)
    assert max(tile.num_rows for tile in plan.row_tiles or [RowTile(0, 0, 0)]) <= shape.tile_rows
    assert shape.query_tiles >= len(plan.query_tiles) > 0
    assert shape.max_blocks * BLOCK_SIZE >= max(start + size for _, size, start in chunks)
    longest = max((length for _, length in decodes), default=1)
    assert shape.max_context == min(limit for limit in (256, MAX_CONTEXT) if longest <= limit)


def test_a_step_and_the_shape_that_holds_it_cut_their_rows_into_tiles_alike() -> None:
    for rows in (500, SMALL_TILES_UP_TO, SMALL_TILES_UP_TO + 1, 700, 2000):
        batch = batch_of([], [])
        sequence = Sequence.of(add_command(0, [1] * rows), 0)
        sequence.block_table = list(range(-(-rows // BLOCK_SIZE)))
        sequence.adapter_slot = 3
        batch.prefills.append(ScheduledSequence(sequence, 0, rows, True, 0, 0))
        plan = StepPlan(batch, BLOCK_SIZE)
        shape = GRAPH_SHAPES.shape_of(plan)
        assert shape is not None
        assert plan.row_tiles[0].num_rows == shape.tile_rows
        assert shape.tile_rows == (SMALL_TILE_ROWS if rows <= SMALL_TILES_UP_TO else LARGE_TILE_ROWS)


@pytest.mark.parametrize(
    ("max_running", "max_rows"), [(1, 16), (5, 64), (48, 4096), (128, 4096), (256, 512), (700, 4096)]
)
def test_what_lora_hands_over_fits_its_scratch_in_every_captured_step(
    max_running: int, max_rows: int
) -> None:
    config = DecoderConfig.from_hf(SHAPES["qwen2.5-7b"])
    shapes = GraphShapes(
        max_rows=max_rows, max_running=max_running, max_context=MAX_CONTEXT, block_size=BLOCK_SIZE
    )
    workspace = GpuWorkspace(
        config,
        max_rows=max_rows,
        max_decodes=shapes.decodes.max_rows,
        max_running=max_running,
        max_context=MAX_CONTEXT,
        max_lora_rank=64,
        dtype=torch.bfloat16,
        device=torch.device("meta"),
    )
    inputs = [shape.in_features for shape in projection_shapes(config).values()]
    for shape in shapes.all_shapes():
        if not shape.row_tiles:
            continue
        splits = max(num_splits(features, shape.tile_rows) for features in inputs)
        if shape.tile_rows == SMALL_TILE_ROWS:
            splits = max(splits, *(num_parts(features) for features in inputs))
            assert workspace.lora.plan.numel() >= plan_ints(config.num_layers, 4, shape.row_tiles)
        assert workspace.lora.parts.numel() >= splits * shape.rows * workspace.rank_stride
        assert workspace.lora.counters.numel() >= shape.row_tiles * max_rank_groups(workspace.rank_stride)
        attended = shape.decodes * config.num_heads * attention_parts(shape.max_context)
        assert workspace.part_out.numel() >= attended * config.head_dim
        assert shape.logit_rows is None or workspace.logits.shape[0] >= shape.logit_rows


def test_the_inputs_of_every_step_are_a_multiple_of_what_their_kernel_is_compiled_for() -> None:
    assert {shape.layout().nbytes // 4 % 16 for shape in ALL_SHAPES} == {0}


def test_there_are_few_shapes(captured: set[StepShape]) -> None:
    """vLLM #36370: one graph for each number of active adapters and each batch size took 94 s to capture."""
    assert len(captured) < 110
    of_one_size = Counter((shape.rows, shape.max_context) for shape in captured)
    assert max(of_one_size.values()) <= 10, "any number of adapters is rounded up to one of a few"

    shapes = GraphShapes(max_rows=4096, max_running=256, max_context=131_072, block_size=32).all_shapes()
    assert len(shapes) == len(set(shapes)) < 360
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


def sizes_of(shapes: Iterable[StepShape]) -> list[int]:
    """Rows of steps, ascending."""
    return sorted({shape.rows for shape in shapes})


@given(max_running=st.integers(1, 2048))
def test_decodes_are_padded_by_less_than_a_quarter_from_128_rows_on_and_by_less_than_half_below(
    max_running: int,
) -> None:
    sizes = sizes_of(ShapeBuckets(4096, max_running, 256, BLOCK_SIZE).all_shapes())

    padded = {rows: sizes[bisect_left(sizes, rows)] for rows in range(32, max_running + 1)}

    assert all(size < rows * (1.25 if rows >= 128 else 1.5) for rows, size in padded.items())


@given(max_running=st.integers(1, 2048))
def test_prompts_in_single_rows_are_padded_no_more_than_as_prompts(max_running: int) -> None:
    """`is_worth_single_rows` compares no sizes: whatever fits a step of decodes finds as small a one among them."""
    shapes = GraphShapes(max_rows=4096, max_running=max_running, max_context=256, block_size=BLOCK_SIZE)
    decodes, mixed = sizes_of(shapes.decodes.all_shapes()), sizes_of(shapes.mixed.all_shapes())

    fitting = range(1, min(decodes[-1], mixed[-1]) + 1)

    assert all(decodes[bisect_left(decodes, rows)] <= mixed[bisect_left(mixed, rows)] for rows in fitting)


def test_a_step_is_said_to_be_padded_to_the_rows_of_a_captured_shape(
    buckets: ShapeBuckets, captured: set[StepShape]
) -> None:
    sizes = sorted({shape.rows for shape in captured})
    assert sizes[-1] == buckets.max_rows < MAX_ROWS
    for rows in range(1, buckets.max_rows + 1):
        assert buckets.padded_rows(rows) == min(size for size in sizes if size >= rows)
    assert buckets.padded_rows(MAX_ROWS) == MAX_ROWS


def test_the_tiles_of_a_plan_cover_every_row_once() -> None:
    plan = plan_of([3] * 20 + [-1, 5], [7] * 22)

    covered = sorted(
        row for tile in plan.row_tiles for row in range(tile.row_start, tile.row_start + tile.num_rows)
    )

    assert covered == list(range(22))


@pytest.mark.parametrize(("max_rows", "prompt", "rows"), [(16, 9, 16), (112, 65, 112), (4096, 2048, 2048)])
def test_a_prefill_has_a_captured_shape_whatever_steps_may_have(
    max_rows: int, prompt: int, rows: int
) -> None:
    shape = prefill_shapes(max_rows).shape_of(prefill_plan(prompt))

    assert shape is not None
    assert shape.rows == rows


def test_a_prefill_of_thousands_of_rows_has_none() -> None:
    assert prefill_shapes(4096).shape_of(prefill_plan(2049)) is None


def prefill_shapes(max_rows: int) -> GraphShapes:
    return GraphShapes(max_rows=max_rows, max_running=4, max_context=8192, block_size=BLOCK_SIZE)


def prefill_plan(num_tokens: int) -> StepPlan:
    """Of one prompt."""
    batch = batch_of([], [])
    sequence = Sequence.of(add_command(0, [1] * num_tokens), 0)
    sequence.block_table = [0] * -(-num_tokens // BLOCK_SIZE)
    batch.prefills.append(ScheduledSequence(sequence, 0, num_tokens, True, 0, 0))
    return StepPlan(batch, BLOCK_SIZE)
