"""The int8 product of a linear layer with VNNI, for CPUs without AMX; packed and scaled as in `int8_product`.

The instruction multiplies unsigned by signed bytes. So the packed weight is W + 128, and a row's sums begin with
-128 · Σ row, which takes that away again. int32 may overflow on the way; it wraps, and the sums are those of W.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from loraplex_server.kernels.cpu.int8_product import BLOCK_OUTPUTS, TILE_SIZE, write_block
from loraplex_server.kernels.cpu.numerics import int8s, int32s
from loraplex_server.kernels.cpu.runtime import body, inlined, kernel, parallel
from loraplex_server.kernels.cpu.vnni import MAX_DOT_ROWS, dot_rows

_SIGN = -128  # the highest bit, whose flip adds 128
_OFFSET = np.int32(128)


def flip_sign(weight: Tensor) -> Tensor:
    """int8 W -> the bits of unsigned W + 128, and back."""
    return torch.bitwise_xor(weight, _SIGN)


@inlined
def _begin_sums(values: int, stride: int, rows: int, starts: int) -> None:
    """starts[row] = -128 · Σ of the row, padded with zeros."""
    begins = int32s(starts, rows)
    for row in range(rows):
        numbers = int8s(values + row * stride, stride)
        total = np.int32(0)
        for i in range(stride):
            total += np.int32(numbers[i])
        begins[row] = -_OFFSET * total


@body
def _vnni_product(
    values: int,
    stride: int,
    packed: int,
    steps: int,
    scales: int,
    row_scales: int,
    bias: int,
    y: int,
    rows: int,
    width: int,
    start: int,
    stop: int,
) -> None:
    """Item: a block of outputs, for all rows."""
    memory, begins = np.empty(2 * TILE_SIZE, np.int8), np.empty(rows, np.int32)
    sums, starts = memory.ctypes.data, begins.ctypes.data
    _begin_sums(values, stride, rows, starts)
    for block in range(start, stop):
        b = packed + block * steps * 2 * TILE_SIZE
        for row in range(0, rows, MAX_DOT_ROWS):
            num_rows = min(rows - row, MAX_DOT_ROWS)
            dot_rows(num_rows, values + row * stride, stride, b, steps, starts + row * 4, sums)
            write_block(sums, row, num_rows, block, scales, row_scales, bias, y, width)


@kernel
def vnni_product(
    values: int,
    stride: int,
    packed: int,
    steps: int,
    scales: int,
    row_scales: int,
    bias: int,
    y: int,
    rows: int,
    width: int,
    threads: int,
) -> None:
    """y [rows, width] = row_scales · scales · (W values) + bias; rows of `values` are `stride` bytes apart."""
    blocks = (width + BLOCK_OUTPUTS - 1) // BLOCK_OUTPUTS
    parallel(
        _vnni_product,
        (values, stride, packed, steps, scales, row_scales, bias, y, rows, width),
        blocks,
        threads,
    )
