"""The int8 product of a linear layer in AMX tiles, scaled on the way out. The weight is read once, in order.

Packed weight: blocks of 32 outputs, cut along the inputs into steps of 64. A step is two tiles, 16 outputs each: row q
of a tile holds inputs 4q..4q+3 of every output, as the instruction wants them. Zeros fill up both dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from loraplex_server.kernels.cpu.numerics import FLOAT_BYTES, floats, int8s, int32s, prefetch
from loraplex_server.kernels.cpu.runtime import body, inlined, kernel, parallel, strict
from loraplex_server.kernels.cpu.tiles import (
    TILE_BYTES,
    TILE_ROWS,
    clear_tile,
    configure_tiles,
    load_tile,
    multiply_tiles,
    release_tiles,
    store_tile,
)
from loraplex_server.kernels.cpu.vectors import (
    add,
    load,
    load_int32,
    multiply,
    splat,
    store,
)

BLOCK_OUTPUTS = 32
_AHEAD = 8192  # bytes; measured, memory answers no faster further ahead
TILE_SIZE = TILE_ROWS * TILE_BYTES

# Tiles 0..3 gather a block of 32 rows × 32 outputs, 4 and 5 hold rows, 6 and 7 outputs.
_clear0, _clear1, _clear2, _clear3 = clear_tile(0), clear_tile(1), clear_tile(2), clear_tile(3)
_load4, _load5, _load6, _load7 = load_tile(4), load_tile(5), load_tile(6), load_tile(7)
_multiply0, _multiply1 = multiply_tiles(0, 4, 6), multiply_tiles(1, 4, 7)
_multiply2, _multiply3 = multiply_tiles(2, 5, 6), multiply_tiles(3, 5, 7)
_store0, _store1, _store2, _store3 = store_tile(0), store_tile(1), store_tile(2), store_tile(3)


def padded_features(features: int) -> int:
    """Inputs of the packed weight, and bytes from one quantized row to the next."""
    return -(-features // TILE_BYTES) * TILE_BYTES


def pack_weight(weight: Tensor) -> Tensor:
    """[out, in] int8 -> [blocks, steps, 2, 16, 16, 4]."""
    out_features, in_features = weight.shape
    blocks, padded = -(-out_features // BLOCK_OUTPUTS), padded_features(in_features)
    whole = torch.zeros(blocks * BLOCK_OUTPUTS, padded, dtype=torch.int8)
    whole[:out_features, :in_features] = weight
    cut = whole.view(blocks, 2, TILE_ROWS, padded // TILE_BYTES, TILE_ROWS, 4)
    return cut.permute(0, 3, 1, 4, 2, 5).contiguous()


def unpack_rows(packed: Tensor, rows: Tensor, in_features: int) -> Tensor:
    """Rows of the weight again: [len(rows), in]."""
    block, half, place = rows // BLOCK_OUTPUTS, rows // TILE_ROWS % 2, rows % TILE_ROWS
    return packed[block, :, half, :, place].reshape(rows.shape[0], -1)[:, :in_features]


@inlined
def _configure(buffer: int, first_rows: int, second_rows: int) -> None:
    """Tiles of `first_rows` and `second_rows` rows; `buffer` is 64 bytes."""
    configuration = int8s(buffer, 64)
    configuration[:] = 0
    configuration[0] = 1  # palette
    for tile in range(8):
        configuration[16 + 2 * tile] = TILE_BYTES
        configuration[48 + tile] = TILE_ROWS
    for tile in (0, 1, 4):
        configuration[48 + tile] = first_rows
    for tile in (2, 3, 5):
        configuration[48 + tile] = second_rows
    configure_tiles(buffer)


@strict
def _write_edge(
    sums: int,
    row: int,
    num_rows: int,
    column: int,
    scales: int,
    row_scales: int,
    bias: int,
    y: int,
    width: int,
) -> None:
    integers = int32s(sums, 4 * TILE_SIZE // 4)
    for i in range(num_rows):
        for j in range(width - column):
            tile = i // TILE_ROWS * 2 + j // TILE_ROWS
            number = np.float32(integers[tile * 256 + i % TILE_ROWS * TILE_ROWS + j % TILE_ROWS])
            number = number * floats(scales, width)[column + j] * floats(row_scales, row + i + 1)[row + i]
            if bias != 0:
                number += floats(bias, width)[column + j]
            floats(y + (row + i) * width * FLOAT_BYTES, width)[column + j] = number


@strict
def write_block(
    sums: int,
    row: int,
    num_rows: int,
    block: int,
    scales: int,
    row_scales: int,
    bias: int,
    y: int,
    width: int,
) -> None:
    """Scale 32 columns of int32 sums into y, from `row` on."""
    column = block * BLOCK_OUTPUTS
    at = column * FLOAT_BYTES
    if column + BLOCK_OUTPUTS <= width:
        scale0, scale1 = load(scales + at), load(scales + at + 64)
        for i in range(num_rows):
            row_scale = splat(floats(row_scales, row + i + 1)[row + i])
            # Tiles of 16 rows: outputs 0..15, then 16..31.
            source = sums + (i // TILE_ROWS) * 2 * TILE_SIZE + (i % TILE_ROWS) * TILE_BYTES
            left = multiply(multiply(load_int32(source), scale0), row_scale)
            right = multiply(multiply(load_int32(source + TILE_SIZE), scale1), row_scale)
            if bias != 0:
                left, right = add(left, load(bias + at)), add(right, load(bias + at + 64))
            target = y + (row + i) * width * FLOAT_BYTES + at
            store(target, left)
            store(target + 64, right)
    else:
        _write_edge(sums, row, num_rows, column, scales, row_scales, bias, y, width)


@body
def _int8_product(
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
    memory = np.empty(4 * TILE_SIZE + 64, np.int8)
    sums = memory.ctypes.data
    configuration = sums + 4 * TILE_SIZE
    configured = 0
    for block in range(start, stop):
        for row in range(0, rows, 2 * TILE_ROWS):
            num_rows = min(rows - row, 2 * TILE_ROWS)
            if num_rows != configured:
                _configure(configuration, min(num_rows, TILE_ROWS), max(num_rows - TILE_ROWS, 1))
                configured = num_rows
            a = values + row * stride
            b = packed + block * steps * 2 * TILE_SIZE
            _clear0()
            _clear1()
            if num_rows > TILE_ROWS:
                _clear2()
                _clear3()
                for _step in range(steps):
                    _load6(b, TILE_BYTES)
                    _load7(b + TILE_SIZE, TILE_BYTES)
                    _load4(a, stride)
                    _load5(a + TILE_ROWS * stride, stride)
                    _multiply0()
                    _multiply1()
                    _multiply2()
                    _multiply3()
                    a += TILE_BYTES
                    b += 2 * TILE_SIZE
                _store2(sums + 2 * TILE_SIZE, TILE_BYTES)
                _store3(sums + 3 * TILE_SIZE, TILE_BYTES)
            else:
                for _step in range(steps):
                    for line in range(0, 2 * TILE_SIZE, 64):
                        prefetch(b + _AHEAD + line)
                    _load6(b, TILE_BYTES)
                    _load7(b + TILE_SIZE, TILE_BYTES)
                    _load4(a, stride)
                    _multiply0()
                    _multiply1()
                    a += TILE_BYTES
                    b += 2 * TILE_SIZE
            _store0(sums, TILE_BYTES)
            _store1(sums + TILE_SIZE, TILE_BYTES)
            write_block(sums, row, num_rows, block, scales, row_scales, bias, y, width)
    release_tiles()


@kernel
def int8_product(
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
        _int8_product,
        (values, stride, packed, steps, scales, row_scales, bias, y, rows, width),
        blocks,
        threads,
    )
