"""silu(gate) · up, with the LoRA of both added first or the row quantized after."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from loraplex_server.kernels.device_code import cast, lora_delta, quantize_row, wait_for_previous
from loraplex_server.kernels.lora_epilogue import LoraEpilogue
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

_BLOCK_N = 128


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
    out_ptr: Pointer,
    shrunk_ptr: Pointer,
    arena_ptr: Pointer,
    records_ptr: Pointer,
    tiles_ptr: Pointer,
    num_rows: Scalar,  # of the batch, where there are no row tiles
    record_start: Scalar,
    slot_stride: Scalar,
    FEATURES: constexpr,
    HAS_LORA: constexpr,
    RANK_STRIDE: constexpr,
    BLOCK_M: constexpr,
    BLOCK_N: constexpr,
    BLOCK_R: constexpr,
    PDL: constexpr,
) -> None:
    """Program (block of columns, row tile)."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = columns < FEATURES
    offsets = tl.arange(0, BLOCK_M)
    if HAS_LORA:
        tile_ptr = tiles_ptr + tl.program_id(1) * 4
        row_start = tl.load(tile_ptr)
        tile_rows = tl.load(tile_ptr + 1)
        slot = tl.load(tile_ptr + 2)
        is_adapted = (tile_rows > 0) & (slot >= 0)
        rows = (row_start + offsets).to(tl.int64)
        row_mask = offsets < tile_rows
        record_ptr = records_ptr + record_start + slot.to(tl.int64) * slot_stride
        gate = lora_delta(
            arena_ptr,
            shrunk_ptr,
            record_ptr,
            0,
            is_adapted,
            rows,
            row_mask,
            columns,
            column_mask,
            FEATURES,
            RANK_STRIDE,
            BLOCK_M,
            BLOCK_N,
            BLOCK_R,
            PDL,
        )
        up = lora_delta(
            arena_ptr,
            shrunk_ptr,
            record_ptr,
            1,
            is_adapted,
            rows,
            row_mask,
            columns,
            column_mask,
            FEATURES,
            RANK_STRIDE,
            BLOCK_M,
            BLOCK_N,
            BLOCK_R,
            False,
        )
    else:
        wait_for_previous(PDL)
        rows = (tl.program_id(1) * BLOCK_M + offsets).to(tl.int64)
        row_mask = rows < num_rows
        gate = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        up = gate
    mask = row_mask[:, None] & column_mask[None, :]
    gate_ptrs = gate_up_ptr + rows[:, None] * (2 * FEATURES) + columns[None, :]
    gate += tl.load(gate_ptrs, mask=mask, other=0.0).to(tl.float32)
    up += tl.load(gate_ptrs + FEATURES, mask=mask, other=0.0).to(tl.float32)
    activated = cast(_swiglu(gate, up), out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows[:, None] * FEATURES + columns[None, :], activated, mask=mask)


def swiglu(
    gate_up: Tensor, out: Tensor | None, quantized: QuantizedRows | None, lora: LoraEpilogue | None = None
) -> None:
    """silu(gate) · up of each row into `out`, `quantized` or both; with `lora`, of gate and up plus their LoRA.

    gate_up    [n, 2 · features] contiguous, gate then up
    out        [n, features] contiguous, in the dtype of gate_up; with `lora`, rows outside its tiles are left as they
               are
    quantized  what `quantize_rows` would make of `out`. It needs a whole row at once and LoRA is added in tiles, so
               with `lora` this is None and `quantize_rows` follows
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
    if quantized is not None:
        require(lora is None, "with LoRA, quantize the rows afterwards")
        quantized.check(gate_up[:, :features])
        _launch_rows(gate_up, out, quantized, features)
    else:
        assert out is not None
        _launch_tiles(gate_up, out, features, lora)


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


def _launch_tiles(gate_up: Tensor, out: Tensor, features: int, lora: LoraEpilogue | None) -> None:
    num_rows = gate_up.shape[0]
    pdl = overlaps_launches(gate_up)
    if lora is not None:
        lora.check(gate_up, (features, features))
    block_m = 16 if lora is None else lora.tile_rows
    num_tiles = -(-num_rows // block_m) if lora is None else lora.row_tiles.shape[0]
    _swiglu_tiles_kernel[(-(-features // _BLOCK_N), num_tiles)](
        gate_up,
        out,
        None if lora is None else lora.shrunk,
        None if lora is None else lora.tables.arena,
        None if lora is None else lora.tables.records,
        None if lora is None else lora.row_tiles,
        num_rows,
        0 if lora is None else lora.record_start,
        0 if lora is None else lora.slot_stride,
        FEATURES=features,
        HAS_LORA=lora is not None,
        RANK_STRIDE=1 if lora is None else lora.shrunk.shape[1],
        BLOCK_M=block_m,
        BLOCK_N=_BLOCK_N,
        BLOCK_R=16 if lora is None else lora.block_r,
        PDL=pdl,
        num_warps=4 if block_m == 16 else 8,
        num_stages=1,  # the loop requests its next rows of B itself
        launch_pdl=pdl,
    )
