"""LoRA's products in CUDA C++: that they compile, what old drivers lack. test_lora_cuda_on_cpu.py executes them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loraplex_server.kernels import cuda_driver, lora_cuda
from loraplex_server.kernels.lora_cuda import DEEP, EXPAND_DEFINES, PLAN_DEFINES, SHALLOW
from loraplex_server.kernels.nvrtc import compile_cubin

SOURCES = [
    ("lora_plan", PLAN_DEFINES),
    *(("lora_shrink", depth.defines) for depth in (DEEP, SHALLOW)),
    *(("lora_expand", EXPAND_DEFINES | {"ADD": int(adds)}) for adds in (False, True)),
]


@pytest.mark.parametrize(("function", "defines"), SOURCES)
def test_the_sources_compile_for_hopper(function: str, defines: dict[str, int], tmp_path: Path) -> None:
    pytest.importorskip("nvidia.cu13", reason="needs NVRTC")
    assert function.encode() in compile_cubin(f"{function}.cu", defines, "sm_90a", tmp_path)


@pytest.mark.parametrize(("num_tiles", "is_held"), [(2048, True), (2049, False)])
def test_more_row_tiles_than_shared_memory_holds_are_left_to_triton(
    num_tiles: int, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_cuda, "has_cuda_products", lambda device: True)

    assert lora_cuda.has_cuda_lora(torch.empty(1, dtype=torch.bfloat16), num_tiles) is is_held
    assert max(depth.shared_bytes(2048) for depth in (DEEP, SHALLOW)) + 5 * 1024 < 227 * 1024


@pytest.mark.parametrize(
    ("symbols", "has_edges"),
    [
        ([], False),
        (["cuStreamGetCaptureInfo_v3"], False),
        (["cuStreamGetCaptureInfo_v3", "cuStreamUpdateCaptureDependencies_v2"], True),
    ],
)
def test_an_older_driver_has_no_edges_of_captures(
    symbols: list[str], has_edges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimpleNamespace(**dict.fromkeys(symbols))
    monkeypatch.setattr(cuda_driver, "driver", lambda: driver)

    assert cuda_driver.has_capture_edges() is has_edges
