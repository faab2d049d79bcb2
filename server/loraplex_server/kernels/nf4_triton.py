"""The NF4 product in Triton: for GPUs that the CUDA kernel does not know, and, interpreted, for CI without a GPU.

Each weight is rounded to bf16 as bitsandbytes does, so this is always the exact product.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from loraplex_server.kernels.device_code import cast, dot
from loraplex_server.kernels.nf4_weight import NF4_TABLE, Nf4Weight
from loraplex_server.kernels.triton_runtime import Pointer, Scalar, constexpr, jit, next_power_of_2, tl


@jit
def _product(
    records: Pointer,  # [row_tiles, k_tiles, 144] int32
    table: Pointer,  # [16] fp32
    x: Pointer,  # [m, 64 · k_tiles] bf16
    bias: Pointer,  # [n] bf16
    out: Pointer,  # [m, n] bf16
    m: Scalar,
    n: Scalar,
    k_tiles: Scalar,
    row_tiles: Scalar,
    x_stride: Scalar,
    out_stride: Scalar,
    HAS_BIAS: constexpr,
    ROWS: constexpr,  # of x, per program
    TILES: constexpr,  # of 16 outputs, per program
) -> None:
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * TILES * 16 + tl.arange(0, TILES * 16)
    # A missing tile reads the last one; its columns are not written.
    record = tl.minimum(tile, row_tiles - 1).to(tl.int64) * k_tiles * 144

    lane_word = tl.arange(0, 128)  # g, t, s
    shift = 4 * tl.arange(0, 8)  # input pair h, row half, element
    sums = tl.zeros((TILES * 16, ROWS), tl.float32)
    for k in range(0, k_tiles):
        words = tl.load(records + record[:, None] + k * 144 + lane_word[None, :]).to(tl.uint32, bitcast=True)
        plain = (words >> 7) | (words << 25)
        codes = (plain[:, :, None] >> shift[None, None, :].to(tl.uint32)) & 15
        values = tl.load(table + codes.to(tl.int32))
        # [tile, g, t, s, h, row half, element] to [tile, row half, g | s, h, t, element]
        places = tl.reshape(values, (TILES, 8, 4, 4, 2, 2, 2))
        places = tl.permute(places, (0, 5, 1, 3, 4, 2, 6))
        weight = tl.reshape(places, (TILES * 16, 64))
        scales = tl.load(records + record[:, None] + k * 144 + 128 + tl.arange(0, 16)[None, :])
        scales = tl.permute(
            tl.reshape(scales, (TILES, 8, 2)), (0, 2, 1)
        )  # stored g by g, both halves together
        by = tl.reshape(scales, (TILES * 16,)).to(tl.float32, bitcast=True)
        weight = cast(weight * by[:, None], tl.bfloat16)
        inputs = k * 64 + tl.arange(0, 64)
        part = tl.load(x + row[None, :] * x_stride + inputs[:, None], mask=row[None, :] < m, other=0.0)
        sums = dot(weight, part, sums)
    if HAS_BIAS:
        sums += tl.load(bias + column, mask=column < n, other=0.0).to(tl.float32)[:, None]
    at = out + row[None, :].to(tl.int64) * out_stride + column[:, None]
    tl.store(at, cast(sums, tl.bfloat16), mask=(row[None, :] < m) & (column[:, None] < n))


def nf4_matmul_triton(x: Tensor, weight: Nf4Weight, out: Tensor, bias: Tensor | None) -> Tensor:
    """out [m, N] = x [m, K] · Wᵀ + bias, all bf16; returns out."""
    rows = min(64, max(16, next_power_of_2(x.shape[0])))
    row_tiles, k_tiles, _ = weight.records.shape
    grid = (-(-row_tiles // 2), -(-x.shape[0] // rows))
    _product[grid](
        weight.records.view(torch.int32),
        _table(x.device),
        x,
        out if bias is None else bias,
        out,
        x.shape[0],
        weight.out_features,
        k_tiles,
        row_tiles,
        x.stride(0),
        out.stride(0),
        HAS_BIAS=bias is not None,
        ROWS=rows,
        TILES=2,
        num_warps=4,
        num_stages=3,
    )
    return out


@functools.cache
def _table(device: torch.device) -> Tensor:
    return torch.tensor(NF4_TABLE, dtype=torch.float32, device=device)
