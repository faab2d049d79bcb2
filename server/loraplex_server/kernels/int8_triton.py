"""The int8 product in Triton: many rows, other GPUs, and, interpreted, CI without a GPU."""

from __future__ import annotations

from torch import Tensor

from loraplex_server.kernels.device_code import cast
from loraplex_server.kernels.triton_runtime import Pointer, Scalar, constexpr, jit, tl


@jit
def _product(
    x: Pointer,
    x_scale: Pointer,
    weight: Pointer,
    weight_scale: Pointer,
    bias: Pointer,
    out: Pointer,
    m: Scalar,
    n: Scalar,
    k: Scalar,
    x_stride: Scalar,
    out_stride: Scalar,
    HAS_BIAS: constexpr,
    ROWS: constexpr,
    COLUMNS: constexpr,
    INPUTS: constexpr,
    EVEN: constexpr,  # the inputs are a multiple of INPUTS
    GROUP: constexpr,  # row blocks that share columns of the weight stand next to each other
) -> None:
    row_blocks = tl.cdiv(m, ROWS)
    column_blocks = tl.cdiv(n, COLUMNS)
    program = tl.program_id(0)
    group = program // (GROUP * column_blocks)
    in_group = tl.minimum(row_blocks - group * GROUP, GROUP)
    row_block = group * GROUP + (program % (GROUP * column_blocks)) % in_group
    column_block = (program % (GROUP * column_blocks)) // in_group

    row = row_block * ROWS + tl.arange(0, ROWS)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    inputs = tl.arange(0, INPUTS)
    # Rows and columns past the end read the last one: nothing of theirs is written.
    x_at = x + tl.minimum(row, m - 1).to(tl.int64)[:, None] * x_stride + inputs[None, :]
    weight_at = weight + tl.minimum(column, n - 1).to(tl.int64)[None, :] * k + inputs[:, None]
    sums = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(0, k, INPUTS):
        if EVEN:
            a = tl.load(x_at + start)
            b = tl.load(weight_at + start)
        else:
            a = tl.load(x_at + start, mask=inputs[None, :] < k - start, other=0)
            b = tl.load(weight_at + start, mask=inputs[:, None] < k - start, other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
    scale = tl.load(x_scale + row, mask=row < m, other=0.0)[:, None]
    by = tl.load(weight_scale + column, mask=column < n, other=0.0)[None, :]
    y = sums.to(tl.float32) * (scale * by)
    if HAS_BIAS:
        y += tl.load(bias + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
    at = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
    tl.store(at, cast(y, out.dtype.element_ty), mask=(row[:, None] < m) & (column[None, :] < n))


def int8_matmul_triton(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out: Tensor,
    bias: Tensor | None,
    block: tuple[int, int, int, int, int],
) -> Tensor:
    """out [m, N], bf16 or fp32 = (x [m, K] · weightᵀ) · x_scale [m] · weight_scale [N] + bias; returns out.

    block   rows, columns, inputs, warps and pipeline stages of a program
    """
    rows, columns, inputs, num_warps, num_stages = block
    (m, k), n = x.shape, weight.shape[0]
    grid = (-(-m // rows) * -(-n // columns),)
    _product[grid](
        x,
        x_scale,
        weight,
        weight_scale,
        out if bias is None else bias,
        out,
        m,
        n,
        k,
        x.stride(0),
        out.stride(0),
        HAS_BIAS=bias is not None,
        ROWS=rows,
        COLUMNS=columns,
        INPUTS=inputs,
        EVEN=k % inputs == 0,
        GROUP=8,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out
