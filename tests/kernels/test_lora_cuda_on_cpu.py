"""LoRA's CUDA C++ kernels and their launchers, executed on a CPU, against the references."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loraplex_server.kernels import lora_apply, lora_cuda
from loraplex_server.kernels.lora_cuda import EXPAND_DEFINES, PLAN_DEFINES, ShrinkDepth
from loraplex_server.kernels.lora_tables import SMALL_TILE_ROWS, ProjectionShape
from loraplex_server.kernels.nvrtc import cuda_source
from tests.kernels.cuda_on_cpu.emulation import COMPILER, EmulatedKernel
from tests.kernels.lora_case import MIXES, random_adapters
from tests.kernels.test_lora import (
    DOWN,
    GATE_UP,
    MIXED_RANKS,
    QKV,
    check,
    check_alone,
    check_rows_in_no_tile,
    check_same_alone,
    run,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

CPU = torch.device("cpu")
THREADS, BLOCKS = 128, 3


@pytest.fixture(scope="module", autouse=True)
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Rows of bf16 that decode take the CUDA kernels, as on Hopper."""
    folder: Path = tmp_path_factory.mktemp("kernels")

    @functools.cache
    def kernel(function: str, defines: tuple[tuple[str, int], ...]) -> EmulatedKernel:
        return EmulatedKernel(cuda_source(f"{function}.cu"), function, dict(defines), THREADS, folder)

    def plan_kernel(device: int) -> EmulatedKernel:
        return kernel("lora_plan", tuple(PLAN_DEFINES.items()))

    def shrink_kernel(device: int, depth: ShrinkDepth) -> EmulatedKernel:
        return kernel("lora_shrink", tuple(depth.defines.items()))

    def expand_kernel(device: int, adds: bool) -> EmulatedKernel:
        return kernel("lora_expand", tuple((EXPAND_DEFINES | {"ADD": int(adds)}).items()))

    kernels = {
        "_plan_kernel": plan_kernel,
        "_shrink_kernel": shrink_kernel,
        "_expand_kernel": expand_kernel,
        "_multiprocessors": lambda device: BLOCKS,
        "device_index": lambda device: 0,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in kernels.items():
            patch.setattr(lora_cuda, name, value)
        patch.setattr(lora_apply, "has_cuda_lora", lambda rows, _: rows.dtype == torch.bfloat16)
        yield


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("num_rows", [1, 21, 40])
def test_decode_rows_of_mixed_ranks_match_the_reference(mix: str, num_rows: int) -> None:
    check(QKV, MIXED_RANKS, mix, num_rows, SMALL_TILE_ROWS, torch.bfloat16, CPU)
    check_alone(QKV, MIXED_RANKS, mix, num_rows, SMALL_TILE_ROWS, CPU)


@pytest.mark.parametrize("projection", [GATE_UP, DOWN], ids=["gate_up", "down"])
@pytest.mark.parametrize("rank", [1, 16, 128, 256])
def test_every_rank_matches_the_reference(projection: ProjectionShape, rank: int) -> None:
    ranks: list[tuple[int, ...]] = [(rank,) * len(projection.widths)] * 2
    check(projection, ranks, "distinct", 5, SMALL_TILE_ROWS, torch.bfloat16, CPU)


@pytest.mark.parametrize("in_features", [1024, 1032, 2504, 5128])
def test_inputs_of_several_parts_match_the_reference(in_features: int) -> None:
    projection = ProjectionShape(3, in_features, (40, 24, 8))
    ranks: list[tuple[int, ...]] = [(8, 8, 8), (17, 0, 5), (0, 0, 0), (0, 33, 0), (1, 0, 0)]
    check(projection, ranks, "uniform", 21, SMALL_TILE_ROWS, torch.bfloat16, CPU)
    check_alone(projection, ranks, "uniform", 21, SMALL_TILE_ROWS, CPU)


def test_ranks_that_are_held_in_turns_match_the_reference() -> None:
    projection = ProjectionShape(1, 2056, (296,))
    check(projection, [(200,), (129,)], "distinct", 30, SMALL_TILE_ROWS, torch.bfloat16, CPU)


@pytest.mark.parametrize("num_rows", [9, 16])
def test_a_full_tile_matches_the_reference(num_rows: int) -> None:
    projection = ProjectionShape(2, 1096, (264, 40))
    check(projection, [(8, 150)], "identical", num_rows, SMALL_TILE_ROWS, torch.bfloat16, CPU)


def test_more_tiles_than_a_block_has_threads_match_the_reference() -> None:
    projection = ProjectionShape(2, 72, (40, 8))
    # Some adapters leave the projection alone.
    ranks: list[tuple[int, ...]] = [(number * 7 % 20, number * 5 % 9) for number in range(300)]
    check(projection, ranks, "distinct", 300, SMALL_TILE_ROWS, torch.bfloat16, CPU)
    check_alone(projection, ranks, "distinct", 300, SMALL_TILE_ROWS, CPU)


@pytest.mark.parametrize("in_features", [528, 2504])
def test_a_row_is_the_same_alone_and_in_a_mixed_batch(in_features: int) -> None:
    projection = ProjectionShape(3, in_features, (72,))
    check_same_alone(projection, [(8,), (40,), (16,)], SMALL_TILE_ROWS, CPU)


def test_a_row_is_the_same_among_few_rows_and_among_many() -> None:
    """How much of its weights a warp keeps under way depends on the number of rows."""
    generator = torch.Generator().manual_seed(1)
    projection = ProjectionShape(2, 2504, (40, 24))
    adapters = random_adapters(projection, [(8, 8), (33, 5), (16, 0)], torch.bfloat16, CPU, generator)
    x = torch.randn(40, 2504, generator=generator).bfloat16()
    y = torch.randn(40, 64, generator=generator).bfloat16()
    slots = sorted(row % 3 for row in range(40))
    among_few = y.clone()
    for first in range(0, 40, 7):
        rows = slice(first, first + 7)
        run(adapters, x[rows], among_few[rows], slots[rows], SMALL_TILE_ROWS)

    run(adapters, x, y, slots, SMALL_TILE_ROWS)

    assert torch.equal(y, among_few)


@pytest.mark.parametrize("adds", [True, False])
def test_rows_in_no_tile_are_left_as_they_are(adds: bool) -> None:
    check_rows_in_no_tile(adds, CPU)
