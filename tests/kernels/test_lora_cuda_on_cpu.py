"""LoRA's CUDA C++ kernels and their launchers, executed on a CPU, against the references."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loraplex_server.kernels import lora_cuda, lora_expand, lora_shrink
from loraplex_server.kernels.lora_cuda import EXPAND_DEFINES, SHRINK_DEFINES
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
THREADS = 128


@pytest.fixture(scope="module", autouse=True)
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Rows of bf16 that decode take the CUDA kernels, as on Hopper."""
    folder: Path = tmp_path_factory.mktemp("kernels")
    shrink = EmulatedKernel(cuda_source("lora_shrink.cu"), "lora_shrink", SHRINK_DEFINES, THREADS, folder)
    expands = [
        EmulatedKernel(
            cuda_source("lora_expand.cu"), "lora_expand", EXPAND_DEFINES | {"ADD": adds}, THREADS, folder
        )
        for adds in (0, 1)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_cuda, "device_index", lambda device: 0)
        patch.setattr(lora_cuda, "_shrink_kernel", lambda device: shrink)
        patch.setattr(lora_cuda, "_expand_kernel", lambda device, adds: expands[adds])
        for module in (lora_shrink, lora_expand):
            patch.setattr(module, "has_cuda_lora", lambda rows: rows.dtype == torch.bfloat16)
        yield


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("num_rows", [1, 21])
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
