"""Rows to int8 with one scale each, symmetric, as the int8 product reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.device_code import quantize_row, wait_for_previous
from loraplex_server.kernels.triton_runtime import (
    Pointer,
    constexpr,
    jit,
    next_power_of_2,
    overlaps_launches,
    require,
    tl,
)


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Where a kernel writes quantized rows: row ≈ values · scale."""

    values: Tensor  # [n, features] int8, contiguous
    scales: Tensor  # [n] or [n, 1] fp32, contiguous

    def check(self, rows: Tensor) -> None:
        """Raises ValueError unless these hold the quantized `rows`."""
        require(
            self.values.shape == rows.shape
            and self.values.dtype == torch.int8
            and self.values.is_contiguous(),
            f"quantized values {tuple(self.values.shape)} are not contiguous int8 {tuple(rows.shape)}",
        )
        require(
            self.scales.numel() == rows.shape[0]
            and self.scales.dtype == torch.float32
            and self.scales.is_contiguous(),
            "scales must be contiguous fp32, one per row",
        )


def quantize_rows_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """(values, scales [n, 1]) of x [n, features]; a row of zeros stays zero."""
    x = x.float()
    scales = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127.0
    return (x / scales).round().to(torch.int8), scales


@jit
def _quantize_rows_kernel(
    x_ptr: Pointer,
    values_ptr: Pointer,
    scales_ptr: Pointer,
    FEATURES: constexpr,
    BLOCK: constexpr,
    PDL: constexpr,
) -> None:
    """Program (row)."""
    row = tl.program_id(0).to(tl.int64) * FEATURES
    features = tl.arange(0, BLOCK)
    mask = features < FEATURES
    wait_for_previous(PDL)
    x = tl.load(x_ptr + row + features, mask=mask, other=0.0).to(tl.float32)
    integers, scale = quantize_row(x)
    tl.store(values_ptr + row + features, integers.to(tl.int8), mask=mask)
    tl.store(scales_ptr + tl.program_id(0), scale)


def quantize_rows(x: Tensor, quantized: QuantizedRows) -> None:
    """Quantize each row of x [n, features], contiguous, of any float dtype."""
    num_rows, features = x.shape
    require(x.is_contiguous(), "x must be contiguous")
    quantized.check(x)
    pdl = overlaps_launches(x)
    block = next_power_of_2(features)
    _quantize_rows_kernel[(num_rows,)](
        x,
        quantized.values,
        quantized.scales,
        FEATURES=features,
        BLOCK=block,
        PDL=pdl,
        num_warps=min(16, max(1, block // 512)),
        launch_pdl=pdl,
    )
