"""silu(gate) · up, with the LoRA of both added first or the row quantized after."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from loraplex_server.kernels.device_code import cast, quantize_row, wait_for_previous
from loraplex_server.kernels.quantize import QuantizedRows
from loraplex_server.kernels.triton_runtime import (
    Block,
    Pointer,
    Scalar,
    constexpr,
    jit,
    next_power_of_2,
    overlaps_launches,
    require,
    tl,
)

_BLOCK_M, _BLOCK_N = 16, 128


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """silu(gate) · up in fp32, rounded once; gate_up [n, 2 · features]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


@jit
def _swiglu(gate: Block, up: Block) -> Block:
    return gate / (1.0 + tl.exp(-gate)) * up


@jit
def _swiglu_kernel(
    gate_up_ptr: Pointer,
    out_ptr: Pointer,
    quantized_ptr: Pointer,
    scales_ptr: Pointer,
    FEATURES: constexpr,
    HAS_OUT: constexpr,
    IS_QUANTIZED: constexpr,
    BLOCK: constexpr,
    PDL: constexpr,
) -> None:
    """Program (row)."""
    row = tl.program_id(0).to(tl.int64) * FEATURES
    features = tl.arange(0, BLOCK)
    mask = features < FEATURES
    wait_for_previous(PDL)
    gate = tl.load(gate_up_ptr + 2 * row + features, mask=mask, other=0.0)
    up = tl.load(gate_up_ptr + 2 * row + FEATURES + features, mask=mask, other=0.0)
    activated = cast(_swiglu(gate.to(tl.float32), up.to(tl.float32)), gate.dtype)
    if HAS_OUT:
        tl.store(out_ptr + row + features, activated, mask=mask)
    if IS_QUANTIZED:
        integers, scale = quantize_row(activated.to(tl.float32))
        tl.store(quantized_ptr + row + features, integers.to(tl.int8), mask=mask)
        tl.store(scales_ptr + tl.program_id(0), scale)


@jit
def _swiglu_tiles_kernel(
    gate_up_ptr: Pointer,
    delta_ptr: Pointer,  # read with HAS_DELTA
    out_ptr: Pointer,
    num_rows: Scalar,
    FEATURES: constexpr,
    HAS_DELTA: constexpr,
    BLOCK_M: constexpr,
    BLOCK_N: constexpr,
    PDL: constexpr,
) -> None:
    """Program (block of columns, block of rows)."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    mask = (rows < num_rows)[:, None] & (columns < FEATURES)[None, :]
    wait_for_previous(PDL)
    gates = rows[:, None] * (2 * FEATURES) + columns[None, :]
    ups = gates + FEATURES
    gate = tl.load(gate_up_ptr + gates, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + ups, mask=mask, other=0.0).to(tl.float32)
    if HAS_DELTA:
        gate += tl.load(delta_ptr + gates, mask=mask, other=0.0).to(tl.float32)
        up += tl.load(delta_ptr + ups, mask=mask, other=0.0).to(tl.float32)
    activated = cast(_swiglu(gate, up), out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows[:, None] * FEATURES + columns[None, :], activated, mask=mask)


def swiglu(
    gate_up: Tensor, out: Tensor | None, quantized: QuantizedRows | None, delta: Tensor | None = None
) -> None:
    """silu(gate) · up of each row into `out`, `quantized` or both.

    gate_up    [n, 2 · features] contiguous, gate then up
    out        [n, features] contiguous, in the dtype of gate_up
    quantized  what `quantize_rows` would make of `out`
    delta      of gate_up's shape and dtype, contiguous: their LoRA, added first. Then `quantized` is None: LoRA's next
               product need not wait for `quantize_rows`
    """
    num_rows, double = gate_up.shape
    features = double // 2
    require(gate_up.is_contiguous(), "gate_up must be contiguous")
    require(out is not None or quantized is not None, "nothing to write: out and quantized are None")
    if out is not None:
        require(
            out.shape == (num_rows, features) and out.dtype == gate_up.dtype and out.is_contiguous(),
            f"out must be contiguous [{num_rows}, {features}] in the dtype of gate_up",
        )
    require(
        delta is None
        or (delta.shape == gate_up.shape and delta.dtype == gate_up.dtype and delta.is_contiguous()),
        f"delta must be contiguous {tuple(gate_up.shape)} in the dtype of gate_up",
    )
    if quantized is not None:
        require(delta is None, "with LoRA, quantize the rows afterwards")
        quantized.check(gate_up[:, :features])
        _launch_rows(gate_up, out, quantized, features)
    else:
        assert out is not None
        _launch_tiles(gate_up, delta, out, features)


def _launch_rows(gate_up: Tensor, out: Tensor | None, quantized: QuantizedRows, features: int) -> None:
    pdl = overlaps_launches(gate_up)
    block = next_power_of_2(features)
    _swiglu_kernel[(gate_up.shape[0],)](
        gate_up,
        out,
        quantized.values,
        quantized.scales,
        FEATURES=features,
        HAS_OUT=out is not None,
        IS_QUANTIZED=True,
        BLOCK=block,
        PDL=pdl,
        num_warps=min(16, max(1, block // 512)),
        launch_pdl=pdl,
    )


def _launch_tiles(gate_up: Tensor, delta: Tensor | None, out: Tensor, features: int) -> None:
    num_rows = gate_up.shape[0]
    pdl = overlaps_launches(gate_up)
    _swiglu_tiles_kernel[(-(-features // _BLOCK_N), -(-num_rows // _BLOCK_M))](
        gate_up,
        delta,
        out,
        num_rows,
        FEATURES=features,
        HAS_DELTA=delta is not None,
        BLOCK_M=_BLOCK_M,
        BLOCK_N=_BLOCK_N,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
    )
