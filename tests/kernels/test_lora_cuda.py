"""LoRA's products in CUDA C++: what can be held without a GPU. On one, tests/kernels/test_lora.py runs them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from loraplex_server.kernels import cuda_driver
from loraplex_server.kernels.lora_cuda import DEFINES
from loraplex_server.kernels.nvrtc import compile_cubin


@pytest.mark.parametrize("adds", [0, 1])
def test_the_source_compiles_for_hopper(adds: int, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.cu13", reason="needs NVRTC")
    assert b"lora" in compile_cubin("lora.cu", DEFINES | {"ADD": adds}, "sm_90a", tmp_path)


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
