"""RMS norm with what stands around it: the residual added before, the row quantized after."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from loraplex_server.kernels.device_code import cast, quantize_row, wait_for_previous
from loraplex_server.kernels.quantize import QuantizedRows, quantize_rows_reference
from loraplex_server.kernels.triton_runtime import (
    Pointer,
    Scalar,
    constexpr,
    jit,
    next_power_of_2,
    overlaps_launches,
    require,
    tl,
)


def rms_norm_reference(
    hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden += delta in place; returns the norm in the dtype of `hidden`, and that quantized with its scales."""
    if delta is not None:
        hidden.add_(delta)
    normed = F.rms_norm(hidden.float(), (hidden.shape[-1],), weight.float(), eps).to(hidden.dtype)
    return normed, *quantize_rows_reference(normed)


@jit
def _rms_norm_kernel(
    hidden_ptr: Pointer,
    delta_ptr: Pointer,
    weight_ptr: Pointer,
    out_ptr: Pointer,
    quantized_ptr: Pointer,
    scales_ptr: Pointer,
    eps: Scalar,
    FEATURES: constexpr,
    HAS_DELTA: constexpr,
    HAS_OUT: constexpr,
    IS_QUANTIZED: constexpr,
    BLOCK: constexpr,
    PDL: constexpr,
) -> None:
    """Program (row)."""
    row = tl.program_id(0).to(tl.int64) * FEATURES
    features = tl.arange(0, BLOCK)
    mask = features < FEATURES
    weight = tl.load(weight_ptr + features, mask=mask, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    x = tl.load(hidden_ptr + row + features, mask=mask, other=0.0)
    if HAS_DELTA:
        dtype = x.dtype
        x = x.to(tl.float32) + tl.load(delta_ptr + row + features, mask=mask, other=0.0).to(tl.float32)
        # The norm sees what later layers will read.
        x = cast(x, dtype)
        tl.store(hidden_ptr + row + features, x, mask=mask)
    x = x.to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / FEATURES + eps) * weight
    rounded = cast(normed, hidden_ptr.dtype.element_ty)
    if HAS_OUT:
        tl.store(out_ptr + row + features, rounded, mask=mask)
    if IS_QUANTIZED:
        integers, scale = quantize_row(rounded.to(tl.float32))
        tl.store(quantized_ptr + row + features, integers.to(tl.int8), mask=mask)
        tl.store(scales_ptr + tl.program_id(0), scale)


def rms_norm(
    hidden: Tensor,
    delta: Tensor | None,
    weight: Tensor,
    eps: float,
    out: Tensor | None,
    quantized: QuantizedRows | None,
) -> None:
    """hidden += delta in place, then the norm of each row into `out`, `quantized` or both.

    hidden     [n, features] contiguous; the residual stream
    delta      [n, features] contiguous, or None
    weight     [features]
    out        [n, features] contiguous, in the dtype of hidden
    quantized  what `quantize_rows` would make of `out`
    """
    num_rows, features = hidden.shape
    _check_rows(hidden, delta, out, quantized)
    require(weight.shape == (features,) and weight.is_contiguous(), f"weight is not [{features}]")
    require(out is not None or quantized is not None, "nothing to write: out and quantized are None")
    pdl = overlaps_launches(hidden)
    block = next_power_of_2(features)
    _rms_norm_kernel[(num_rows,)](
        hidden,
        delta,
        weight,
        out,
        None if quantized is None else quantized.values,
        None if quantized is None else quantized.scales,
        eps,
        FEATURES=features,
        HAS_DELTA=delta is not None,
        HAS_OUT=out is not None,
        IS_QUANTIZED=quantized is not None,
        BLOCK=block,
        PDL=pdl,
        num_warps=min(16, max(1, block // 512)),
        launch_pdl=pdl,
    )


def _check_rows(
    hidden: Tensor, delta: Tensor | None, out: Tensor | None, quantized: QuantizedRows | None
) -> None:
    require(hidden.is_contiguous(), "hidden must be contiguous")
    for tensor in (delta, out):
        if tensor is not None:
            require(tensor.shape == hidden.shape and tensor.is_contiguous(), "delta or out has another shape")
    if out is not None:
        require(out.dtype == hidden.dtype, "out has another dtype than hidden")
    if quantized is not None:
        quantized.check(hidden)
