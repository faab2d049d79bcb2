"""LoRA's CUDA C++ kernels and their launchers, executed on a CPU, against the references."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loraplex_server.kernels import lora_apply, lora_cuda
from loraplex_server.kernels.lora_cuda import EXPAND_DEFINES, PLAN_DEFINES, ShrinkDepth
from loraplex_server.kernels.lora_tables import DECODE_TILE_ROWS, ProjectionShape
from loraplex_server.kernels.nvrtc import cuda_source
from tests.kernels.cuda_on_cpu.emulation import COMPILER, EmulatedKernel
from tests.kernels.lora_case import MIXES
from tests.kernels.test_lora import (
    DOWN,
    GATE_UP,
    MIXED_RANKS,
    QKV,
    check,
    check_alone,
    check_rows_in_no_tile,
    check_same_alone,
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
        patch.setattr(lora_apply, "has_cuda_lora", lambda rows: rows.dtype == torch.bfloat16)
        yield


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("num_rows", [1, 21, 40])
def test_decode_rows_of_mixed_ranks_match_the_reference(mix: str, num_rows: int) -> None:
    check(QKV, MIXED_RANKS, mix, num_rows, DECODE_TILE_ROWS, torch.bfloat16, CPU)
    check_alone(QKV, MIXED_RANKS, mix, num_rows, DECODE_TILE_ROWS, CPU)


@pytest.mark.parametrize("projection", [GATE_UP, DOWN], ids=["gate_up", "down"])
@pytest.mark.parametrize("rank", [1, 16, 128, 256])
def test_every_rank_matches_the_reference(projection: ProjectionShape, rank: int) -> None:
    ranks: list[tuple[int, ...]] = [(rank,) * len(projection.widths)] * 2
    check(projection, ranks, "distinct", 5, DECODE_TILE_ROWS, torch.bfloat16, CPU)


def test_a_row_is_the_same_alone_and_in_a_mixed_batch() -> None:
    check_same_alone(DOWN, [(8,), (40,), (16,)], DECODE_TILE_ROWS, CPU)


@pytest.mark.parametrize("adds", [True, False])
def test_rows_in_no_tile_are_left_as_they_are(adds: bool) -> None:
    check_rows_in_no_tile(adds, CPU)
