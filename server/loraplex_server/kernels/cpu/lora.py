"""LoRA of decode rows: all adapters and modules of one projection in one launch."""

from __future__ import annotations

import numpy as np

from loraplex_server.kernels.cpu.numerics import FLOAT_BYTES, ZERO, floats, int64s
from loraplex_server.kernels.cpu.runtime import Value, body, inlined, kernel, parallel

RECORD_FIELDS = 9
"""Of one module of one segment: row start, row stop, address of A, columns of A in all, its first column, rank,
address of B, first column of the output, columns. A module that the adapter leaves alone has rank 0."""

_LANES = 8


@inlined
def _shrink(x: Value, a: int, a_columns: int, first: int, rank: int, shrunk: Value) -> None:
    """shrunk[:rank] = x · A[:, first : first + rank]; eight columns at a time stay in registers."""
    width = x.shape[0]
    for column in range(0, rank - rank % _LANES, _LANES):
        s0, s1, s2, s3, s4, s5, s6, s7 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
        base = a + (first + column) * FLOAT_BYTES
        for k in range(width):
            w = floats(base + k * a_columns * FLOAT_BYTES, _LANES)
            v = x[k]
            s0 += v * w[0]
            s1 += v * w[1]
            s2 += v * w[2]
            s3 += v * w[3]
            s4 += v * w[4]
            s5 += v * w[5]
            s6 += v * w[6]
            s7 += v * w[7]
        shrunk[column], shrunk[column + 1], shrunk[column + 2], shrunk[column + 3] = s0, s1, s2, s3
        shrunk[column + 4], shrunk[column + 5], shrunk[column + 6], shrunk[column + 7] = s4, s5, s6, s7
    for column in range(rank - rank % _LANES, rank):
        total = ZERO
        for k in range(width):
            total += x[k] * floats(a + (k * a_columns + first + column) * FLOAT_BYTES, 1)[0]
        shrunk[column] = total


@inlined
def _expand(shrunk: Value, b: int, rank: int, y: Value) -> None:
    """y += shrunk · B, four ranks a pass."""
    width = y.shape[0]
    for r in range(0, rank - rank % 4, 4):
        b0 = floats(b + r * width * FLOAT_BYTES, width)
        b1 = floats(b + (r + 1) * width * FLOAT_BYTES, width)
        b2 = floats(b + (r + 2) * width * FLOAT_BYTES, width)
        b3 = floats(b + (r + 3) * width * FLOAT_BYTES, width)
        s0, s1, s2, s3 = shrunk[r], shrunk[r + 1], shrunk[r + 2], shrunk[r + 3]
        for i in range(width):
            y[i] += (s0 * b0[i] + s1 * b1[i]) + (s2 * b2[i] + s3 * b3[i])
    for r in range(rank - rank % 4, rank):
        last = floats(b + r * width * FLOAT_BYTES, width)
        s = shrunk[r]
        for i in range(width):
            y[i] += s * last[i]


@body
def _lora(
    x: int, x_width: int, y: int, y_width: int, records: int, num_records: int, start: int, stop: int
) -> None:
    """Item: one module of one row; a record has as many as rows, unless its rank is 0."""
    offset = 0
    for index in range(num_records):
        record = int64s(records + index * RECORD_FIELDS * 8, RECORD_FIELDS)
        row_start, row_stop, rank = record[0], record[1], record[5]
        if rank == 0:
            continue
        shrunk = np.empty(rank, np.float32)
        first, last = max(start - offset, 0), min(stop - offset, row_stop - row_start)
        for row in range(row_start + first, row_start + last):
            source = floats(x + row * x_width * FLOAT_BYTES, x_width)
            _shrink(source, record[2], record[3], record[4], rank, shrunk)
            target = floats(y + (row * y_width + record[7]) * FLOAT_BYTES, record[8])
            _expand(shrunk, record[6], rank, target)
        offset += row_stop - row_start


@kernel
def lora(x: int, x_width: int, y: int, y_width: int, records: int, num_records: int, threads: int) -> None:
    """y[rows] += B (A x[rows]) for each of the records."""
    count = 0
    for index in range(num_records):
        record = int64s(records + index * RECORD_FIELDS * 8, RECORD_FIELDS)
        if record[5] != 0:
            count += record[1] - record[0]
    if count == 1:
        threads = 1
    if count > 0:
        parallel(_lora, (x, x_width, y, y_width, records, num_records), count, threads)
