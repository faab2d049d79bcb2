"""LoRA over row tiles: the kernels against their references, and what a row's result may depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loraplex_server.kernels.lora_apply import lora_apply, lora_prepare, takes_cuda_kernels
from loraplex_server.kernels.lora_cuda import num_parts
from loraplex_server.kernels.lora_dense import lora_dense
from loraplex_server.kernels.lora_expand import lora_expand_reference
from loraplex_server.kernels.lora_scratch import num_splits
from loraplex_server.kernels.lora_shrink import lora_shrink, lora_shrink_reference
from loraplex_server.kernels.lora_tables import (
    LARGE_TILE_ROWS,
    SMALL_TILE_ROWS,
    ProjectionShape,
    plan_row_tiles,
    projection_record,
)
from tests.kernels.lora_case import (
    MIXES,
    Adapters,
    assert_left_in_order,
    poisoned_scratch,
    random_adapters,
    slots_of_rows,
    tile_table,
    wider,
)

QKV = ProjectionShape(0, 328, (160, 40, 40))
GATE_UP = ProjectionShape(2, 72, (296, 296))
DOWN = ProjectionShape(3, 528, (72,))
MIXED_RANKS: list[tuple[int, ...]] = [(8, 8, 8), (64, 0, 16), (1, 3, 7), (0, 0, 40), (128, 16, 1)]
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def relative_error(out: Tensor, reference: Tensor) -> float:
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def run(
    adapters: Adapters, x: Tensor, y: Tensor, slots: list[int], tile_rows: int, adds: bool = True
) -> None:
    """Both products into y, through scratch that is NaN wherever nothing is written."""
    tiles = tile_table(slots, tile_rows, x.device)
    in_features = adapters.projection.in_features
    is_cuda = takes_cuda_kernels(x, tiles, tile_rows)
    splits = num_parts(in_features) if is_cuda else num_splits(in_features, tile_rows)
    rank_stride = adapters.max_total_rank + 3
    shrunk = torch.full((x.shape[0] + 1, rank_stride), torch.nan, dtype=x.dtype, device=x.device)
    scratch = poisoned_scratch(splits, shrunk, x.shape[0], tiles.shape[0])
    of_projections = [8] * 4
    of_projections[adapters.projection.index] = in_features
    lora_prepare(scratch, adapters.tables, tiles, of_projections, tile_rows)
    place = (tiles, adapters.layer, adapters.projection, tile_rows)
    lora_apply(x, y, shrunk, scratch, adapters.tables, *place, adds=adds)
    assert_left_in_order(scratch)


def reference(adapters: Adapters, x: Tensor, y: Tensor, slots: list[int]) -> Tensor:
    tiles = tile_table(slots, SMALL_TILE_ROWS, x.device)
    expected = y.float()
    layer, projection = adapters.layer, adapters.projection
    shrunk = lora_shrink_reference(
        x.cpu(), on_cpu(adapters).tables, tiles.cpu(), layer, projection, adapters.max_total_rank
    )
    result = expected.cpu()
    lora_expand_reference(shrunk, result, on_cpu(adapters).tables, tiles.cpu(), layer, projection)
    return result


def on_cpu(adapters: Adapters) -> Adapters:
    tables = adapters.tables
    tables = replace(tables, arena=tables.arena.cpu(), records=tables.records.cpu())
    return Adapters(tables, adapters.projection, adapters.layer, adapters.max_total_rank)


def check_alone(
    projection: ProjectionShape,
    ranks: list[tuple[int, ...]],
    mix: str,
    num_rows: int,
    tile_rows: int,
    device: torch.device,
) -> None:
    """What LoRA adds, by itself: zeros for rows of the base, and where an adapter leaves a module alone."""
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    adapters = random_adapters(projection, ranks, torch.bfloat16, device, generator)
    x = torch.randn(num_rows, projection.in_features, generator=generator).bfloat16().to(device)
    y = torch.full((num_rows, sum(projection.widths)), torch.nan, dtype=torch.bfloat16, device=device)
    slots = slots_of_rows(mix, num_rows, len(ranks), generator)
    expected = reference(adapters, x, torch.zeros_like(y), slots)

    run(adapters, x, y, slots, tile_rows, adds=False)

    assert (y.cpu().double() - expected).norm() <= TOLERANCE[torch.bfloat16] * expected.norm()
    assert not y.cpu()[expected == 0].any()


def check(
    projection: ProjectionShape,
    ranks: list[tuple[int, ...]],
    mix: str,
    num_rows: int,
    tile_rows: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    adapters = random_adapters(projection, ranks, dtype, device, generator)
    x = wider(torch.randn(num_rows, projection.in_features, generator=generator).to(dtype).to(device))
    y = wider(torch.randn(num_rows, sum(projection.widths), generator=generator).to(dtype).to(device))
    slots = slots_of_rows(mix, num_rows, len(ranks), generator)
    expected = reference(adapters, x, y, slots)
    untouched = y[[row for row, slot in enumerate(slots) if slot < 0]].clone()

    run(adapters, x, y, slots, tile_rows)

    assert relative_error(y.cpu(), expected) < TOLERANCE[dtype]
    assert torch.equal(y[[row for row, slot in enumerate(slots) if slot < 0]], untouched)


def check_same_alone(
    projection: ProjectionShape, ranks: list[tuple[int, ...]], tile_rows: int, device: torch.device
) -> None:
    """A row's result has the same bits by itself and among rows of other adapters."""
    generator = torch.Generator().manual_seed(7)
    adapters = random_adapters(projection, ranks, torch.bfloat16, device, generator)
    x = torch.randn(12, projection.in_features, generator=generator).bfloat16().to(device)
    y = torch.randn(12, sum(projection.widths), generator=generator).bfloat16().to(device)
    slots = sorted(row % len(ranks) for row in range(12))
    alone = y.clone()
    for row, slot in enumerate(slots):
        run(adapters, x[row : row + 1], alone[row : row + 1], [slot], tile_rows)

    run(adapters, x, y, slots, tile_rows)

    assert torch.equal(y, alone)


def check_rows_in_no_tile(adds: bool, device: torch.device) -> None:
    """They are left as they are; rows of the base alone too, where LoRA is added."""
    generator = torch.Generator().manual_seed(3)
    adapters = random_adapters(DOWN, [(4,)], torch.bfloat16, device, generator)
    x = torch.randn(3, DOWN.in_features, generator=generator).bfloat16().to(device)
    y = torch.full((3, 72), 5.0, dtype=torch.bfloat16, device=device)

    run(adapters, x, y, [0, -1], SMALL_TILE_ROWS, adds)

    assert (y == 5.0).all(dim=1).tolist() == [False, adds, True]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("num_rows", [1, 21])
def test_decode_rows_of_mixed_ranks_match_the_reference(
    mix: str, num_rows: int, device: torch.device
) -> None:
    check(QKV, MIXED_RANKS, mix, num_rows, SMALL_TILE_ROWS, torch.bfloat16, device)


@pytest.mark.parametrize("tile_rows", [SMALL_TILE_ROWS, LARGE_TILE_ROWS])
def test_the_sums_alone_match_the_reference(tile_rows: int, device: torch.device) -> None:
    check_alone(QKV, MIXED_RANKS, "uniform", 21, tile_rows, device)


@pytest.mark.parametrize("rank", [1, 8, 16, 64, 128])
@pytest.mark.parametrize("projection", [GATE_UP, DOWN], ids=["gate_up", "down"])
def test_every_rank_matches_the_reference(
    rank: int, projection: ProjectionShape, device: torch.device
) -> None:
    ranks: list[tuple[int, ...]] = [(rank,) * len(projection.widths)] * 2
    check(projection, ranks, "distinct", 5, SMALL_TILE_ROWS, torch.bfloat16, device)


@pytest.mark.parametrize("tile_rows", [SMALL_TILE_ROWS, LARGE_TILE_ROWS])
def test_ranks_beyond_what_one_round_of_programs_takes_match_the_reference(
    tile_rows: int, device: torch.device
) -> None:
    check(QKV, [(256, 256, 256), (8, 0, 8)], "uniform", 5, tile_rows, torch.bfloat16, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tile_rows", [SMALL_TILE_ROWS, LARGE_TILE_ROWS])
def test_every_dtype_matches_the_reference(dtype: torch.dtype, tile_rows: int, device: torch.device) -> None:
    check(QKV, MIXED_RANKS, "uniform", 33, tile_rows, dtype, device)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rank", [8, 64, 128])
@pytest.mark.parametrize(
    ("num_rows", "tile_rows"), [(1, SMALL_TILE_ROWS), (19, SMALL_TILE_ROWS), (70, LARGE_TILE_ROWS)]
)
def test_every_mix_of_every_dtype_rank_and_number_of_rows_matches_the_reference(
    mix: str, dtype: torch.dtype, rank: int, num_rows: int, tile_rows: int, device: torch.device
) -> None:
    check(DOWN, [(rank,), (rank // 2,), (rank,)], mix, num_rows, tile_rows, dtype, device)


@pytest.mark.parametrize("mix", MIXES)
def test_prefill_rows_match_the_reference(mix: str, device: torch.device) -> None:
    check(GATE_UP, [(8, 8), (0, 33), (64, 16)], mix, 150, LARGE_TILE_ROWS, torch.bfloat16, device)


@pytest.mark.parametrize("tile_rows", [SMALL_TILE_ROWS, LARGE_TILE_ROWS])
def test_a_row_is_the_same_alone_and_in_a_mixed_batch(tile_rows: int, device: torch.device) -> None:
    check_same_alone(QKV, MIXED_RANKS, tile_rows, device)


@pytest.mark.parametrize("adds", [True, False])
def test_rows_in_no_tile_are_left_as_they_are(adds: bool, device: torch.device) -> None:
    check_rows_in_no_tile(adds, device)


def test_shrunk_rows_are_written_for_true_ranks_only(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(3)
    adapters = random_adapters(QKV, [(0, 0, 5), (2, 0, 0)], torch.bfloat16, device, generator)
    x = torch.randn(3, QKV.in_features, generator=generator).bfloat16().to(device)
    tiles = tile_table([-1, 0, 1], SMALL_TILE_ROWS, device)
    shrunk = torch.full((4, 8), torch.nan, dtype=torch.bfloat16, device=device)
    scratch = poisoned_scratch(num_splits(QKV.in_features, SMALL_TILE_ROWS), shrunk, 3, tiles.shape[0])

    lora_shrink(x, shrunk, scratch, adapters.tables, tiles, adapters.layer, QKV, SMALL_TILE_ROWS)

    assert shrunk.isfinite().sum(dim=1).tolist() == [0, 5, 2, 0]


@pytest.mark.parametrize("ranks", [(8, 8, 8), (64, 0, 16), (0, 0, 40), (1, 3, 7)])
def test_plain_products_of_rows_of_one_adapter_match_the_reference(
    ranks: tuple[int, ...], device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    adapters = random_adapters(QKV, [(16, 8, 8), ranks], torch.float32, device, generator)
    x = torch.randn(40, QKV.in_features, generator=generator).to(device)
    y = torch.randn(40, sum(QKV.widths), generator=generator).to(device)
    expected = reference(adapters, x, y, [1] * 40)

    scratch = torch.full((40 * max(1, sum(ranks)),), torch.nan, device=device)
    lora_dense(x, y, adapters.tables, 1, adapters.layer, QKV, scratch)

    assert relative_error(y.cpu(), expected) < TOLERANCE[torch.float32]


def test_row_tiles_never_span_two_adapters() -> None:
    tiles = plan_row_tiles([(3, 17), (-1, 2), (3, 1)], tile_rows=16)

    assert tiles == [(0, 16, 3), (16, 1, 3), (17, 2, -1), (19, 1, 3)]


def test_an_offset_that_loads_could_not_align_to_is_refused() -> None:
    with pytest.raises(ValueError, match="not multiples of 8"):
        projection_record(4, [8], [16])


def test_activations_of_another_dtype_than_the_arena_are_refused(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(3)
    adapters = random_adapters(DOWN, [(4,)], torch.bfloat16, device, generator)
    x = torch.randn(1, DOWN.in_features, device=device)

    with pytest.raises(ValueError, match="the arena"):
        run(adapters, x, torch.zeros(1, 72, device=device), [0], SMALL_TILE_ROWS)


def test_activations_that_loads_could_not_align_to_are_refused(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(3)
    adapters = random_adapters(DOWN, [(4,)], torch.bfloat16, device, generator)
    x = torch.zeros(DOWN.in_features + 4, dtype=torch.bfloat16, device=device)[4:].view(1, -1)

    with pytest.raises(ValueError, match="16-byte aligned"):
        run(adapters, x, torch.zeros(1, 72, dtype=torch.bfloat16, device=device), [0], SMALL_TILE_ROWS)


LLAMA_8B = {
    "qkv": ProjectionShape(0, 4096, (4096, 1024, 1024)),
    "o": ProjectionShape(1, 4096, (4096,)),
    "gate_up": ProjectionShape(2, 4096, (14336, 14336)),
    "down": ProjectionShape(3, 14336, (4096,)),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(LLAMA_8B))
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("num_rows", "tile_rows"), [(1, 16), (32, 16), (128, 16), (777, 64), (2048, 64)])
def test_real_shapes_match_the_reference(
    name: str, mix: str, num_rows: int, tile_rows: int, device: torch.device
) -> None:
    projection = LLAMA_8B[name]
    ranks = [(rank,) * len(projection.widths) for rank in (8, 16, 64, 128, 1)]
    check(projection, ranks, mix, num_rows, tile_rows, torch.bfloat16, device)
    check_alone(projection, ranks, mix, num_rows, tile_rows, device)
