"""LoRA's CUDA C++ kernels for rows that decode, executed on a CPU, against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraplex_server.kernels.lora_cuda import (
    EXPAND_DEFINES,
    PART_INPUTS,
    SHRINK_DEFINES,
    expand_bytes,
    shrink_bytes,
)
from loraplex_server.kernels.lora_expand import lora_expand_reference
from loraplex_server.kernels.lora_shrink import lora_shrink_reference
from loraplex_server.kernels.lora_tables import DECODE_TILE_ROWS, ProjectionShape
from tests.kernels.cuda_on_cpu.emulation import COMPILER, EmulatedKernel
from tests.kernels.lora_case import MIXES, Adapters, random_adapters, slots_of_rows, tile_table

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

THREADS = 128
CPU = torch.device("cpu")
QKV = ProjectionShape(0, 328, (160, 40, 40))
DOWN = ProjectionShape(3, 1352, (72,))
MIXED_RANKS: list[tuple[int, ...]] = [(8, 8, 8), (64, 0, 16), (1, 3, 7), (0, 0, 40), (80, 16, 1)]


@dataclass(frozen=True)
class Kernels:
    shrink: EmulatedKernel
    expand: EmulatedKernel  # writes
    expand_adding: EmulatedKernel

    def run(
        self, adapters: Adapters, x: Tensor, y: Tensor, slots: list[int], *, adds: bool, blocks: int
    ) -> None:
        """As `launch_lora`, through scratch that is NaN wherever nothing is written."""
        tables, projection = adapters.tables, adapters.projection
        tiles = tile_table(slots, DECODE_TILE_ROWS, CPU)
        num_tiles, rank_stride = tiles.shape[0], adapters.max_total_rank + 3
        num_parts, part_stride = -(-projection.in_features // PART_INPUTS), x.shape[0] * rank_stride
        parts = torch.full((num_parts * part_stride,), torch.nan)
        place = (tables.record_start(adapters.layer, projection), tables.slot_stride)
        weights = (tables.arena, tables.records, tiles, num_tiles, *place)
        self.shrink.launch(
            blocks,
            shrink_bytes(num_tiles),
            (x, parts, *weights, x.stride(0), part_stride, projection.in_features, rank_stride),
        )
        (self.expand_adding if adds else self.expand).launch(
            blocks,
            expand_bytes(num_tiles),
            (y, parts, *weights, y.stride(0), *projection.column_ends, num_parts, part_stride, rank_stride),
        )


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    folder: Path = tmp_path_factory.mktemp("kernels")
    return Kernels(
        EmulatedKernel("lora_shrink", SHRINK_DEFINES, THREADS, folder),
        EmulatedKernel("lora_expand", EXPAND_DEFINES | {"ADD": 0}, THREADS, folder),
        EmulatedKernel("lora_expand", EXPAND_DEFINES | {"ADD": 1}, THREADS, folder),
    )


def expected(adapters: Adapters, x: Tensor, y: Tensor, slots: list[int]) -> Tensor:
    tiles = tile_table(slots, DECODE_TILE_ROWS, CPU)
    place = (adapters.layer, adapters.projection)
    shrunk = lora_shrink_reference(x, adapters.tables, tiles, *place, adapters.max_total_rank)
    result = y.float()
    lora_expand_reference(shrunk, result, adapters.tables, tiles, *place)
    return result


def assert_close(y: Tensor, reference: Tensor) -> None:
    assert (y.double() - reference.double()).norm() <= 1e-2 * reference.double().norm()


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("num_rows", "blocks"), [(1, 2), (21, 3)])
def test_decode_rows_of_mixed_ranks_match_the_reference(
    mix: str, num_rows: int, blocks: int, kernels: Kernels
) -> None:
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    adapters = random_adapters(QKV, MIXED_RANKS, torch.bfloat16, CPU, generator)
    x = torch.randn(num_rows, QKV.in_features, generator=generator).bfloat16()
    slots = slots_of_rows(mix, num_rows, len(MIXED_RANKS), generator)
    y = torch.randn(num_rows, sum(QKV.widths), generator=generator).bfloat16()
    alone = torch.full_like(y, torch.nan)
    reference, sums = expected(adapters, x, y, slots), expected(adapters, x, torch.zeros_like(y), slots)

    kernels.run(adapters, x, y, slots, adds=True, blocks=blocks)
    kernels.run(adapters, x, alone, slots, adds=False, blocks=blocks)

    assert_close(y, reference)
    assert_close(alone, sums)
    assert not alone[sums == 0].any()


def test_a_row_is_the_same_alone_and_in_a_mixed_batch(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(7)
    adapters = random_adapters(DOWN, [(8,), (40,), (16,)], torch.bfloat16, CPU, generator)
    x = torch.randn(12, DOWN.in_features, generator=generator).bfloat16()
    y = torch.randn(12, 72, generator=generator).bfloat16()
    slots = sorted(row % 3 for row in range(12))
    alone = y.clone()
    for row, slot in enumerate(slots):
        kernels.run(adapters, x[row : row + 1], alone[row : row + 1], [slot], adds=True, blocks=1)

    kernels.run(adapters, x, y, slots, adds=True, blocks=5)

    assert torch.equal(y, alone)


@pytest.mark.parametrize("adds", [True, False])
def test_rows_in_no_tile_are_left_as_they_are(adds: bool, kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(3)
    adapters = random_adapters(DOWN, [(4,)], torch.bfloat16, CPU, generator)
    x = torch.randn(3, DOWN.in_features, generator=generator).bfloat16()
    y = torch.full((3, 72), 5.0, dtype=torch.bfloat16)

    kernels.run(adapters, x, y, [0, -1], adds=adds, blocks=2)

    assert (y == 5.0).all(dim=1).tolist() == [False, adds, True]


def test_ranks_beyond_those_that_a_warp_holds_match_the_reference(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    adapters = random_adapters(QKV, [(256, 136, 64), (8, 0, 8)], torch.bfloat16, CPU, generator)
    x = torch.randn(3, QKV.in_features, generator=generator).bfloat16()
    y = torch.randn(3, sum(QKV.widths), generator=generator).bfloat16()
    reference = expected(adapters, x, y, [0, 0, 1])

    kernels.run(adapters, x, y, [0, 0, 1], adds=True, blocks=4)

    assert_close(y, reference)
