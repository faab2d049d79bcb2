"""Kernels over the rows of a batch. Each row is computed by itself, by one thread, always in the same order."""

from __future__ import annotations

import numpy as np

from loraplex_server.kernels.cpu.numerics import (
    FLOAT_BYTES,
    ONE,
    ZERO,
    bf16_of_float,
    bf16s,
    exp,
    floats,
    int8_of_float,
    int8s,
    int64s,
    larger,
    larger_magnitude,
    magnitude_of_bits,
)
from loraplex_server.kernels.cpu.runtime import body, inlined, kernel, parallel
from loraplex_server.kernels.cpu.vectors import LANES, add, load, multiply, store, store_bf16, subtract

_INT8_MAX = np.float32(127)
_SMALLEST_MAXIMUM = np.float32(1e-12)
_ARGMAX_BLOCK = 1024


@body
def _rms_norm(
    hidden: int, delta: int, weight: int, out: int, width: int, eps: float, start: int, stop: int
) -> None:
    weights = floats(weight, width)
    for row in range(start, stop):
        offset = row * width * FLOAT_BYTES
        x, y = floats(hidden + offset, width), floats(out + offset, width)
        squares = ZERO
        if delta != 0:
            added = floats(delta + offset, width)
            for i in range(width):
                x[i] += added[i]
        for i in range(width):
            squares += x[i] * x[i]
        factor = ONE / np.sqrt(squares / np.float32(width) + np.float32(eps))
        for i in range(width):
            y[i] = x[i] * factor * weights[i]


@kernel
def rms_norm(
    hidden: int, delta: int, weight: int, out: int, rows: int, width: int, eps: float, threads: int
) -> None:
    """hidden += delta unless `delta` is 0, then out = norm(hidden) · weight."""
    parallel(_rms_norm, (hidden, delta, weight, out, width, eps), rows, threads)


@body
def _quantize_rows(x: int, values: int, scales: int, width: int, stride: int, start: int, stop: int) -> None:
    row_scales = floats(scales, stop)
    for row in range(start, stop):
        source, target = floats(x + row * width * FLOAT_BYTES, width), int8s(values + row * stride, stride)
        largest = np.int32(0)
        for i in range(width):
            largest = larger_magnitude(largest, source[i])
        scale = max(magnitude_of_bits(largest), _SMALLEST_MAXIMUM) / _INT8_MAX
        row_scales[row] = scale
        for i in range(width):
            target[i] = int8_of_float(source[i] / scale)
        target[width:] = 0


@kernel
def quantize_rows(x: int, values: int, scales: int, rows: int, width: int, stride: int, threads: int) -> None:
    """Symmetric int8 per row; rows of `values` are `stride` bytes apart, zeros after the first `width`."""
    parallel(_quantize_rows, (x, values, scales, width, stride), rows, threads)


@body
def _scale_rows(y: int, scales: int, bias: int, width: int, start: int, stop: int) -> None:
    row_scales = floats(scales, stop)
    for row in range(start, stop):
        outputs, scale = floats(y + row * width * FLOAT_BYTES, width), row_scales[row]
        if bias == 0:
            for i in range(width):
                outputs[i] *= scale
        else:
            biases = floats(bias, width)
            for i in range(width):
                outputs[i] = outputs[i] * scale + biases[i]


@kernel
def scale_rows(y: int, scales: int, bias: int, rows: int, width: int, threads: int) -> None:
    """y[row] = y[row] · scales[row] + bias in place; no bias if `bias` is 0."""
    parallel(_scale_rows, (y, scales, bias, width), rows, threads)


@body
def _silu_mul(gate_up: int, out: int, width: int, start: int, stop: int) -> None:
    for row in range(start, stop):
        gate = floats(gate_up + row * 2 * width * FLOAT_BYTES, width)
        up = floats(gate_up + (row * 2 + 1) * width * FLOAT_BYTES, width)
        activated = floats(out + row * width * FLOAT_BYTES, width)
        for i in range(width):
            activated[i] = gate[i] / (ONE + exp(-gate[i])) * up[i]


@kernel
def silu_mul(gate_up: int, out: int, rows: int, width: int, threads: int) -> None:
    """out [rows, width] = silu(gate) · up, with gate_up [rows, 2 · width]."""
    parallel(_silu_mul, (gate_up, out, width), rows, threads)


@inlined
def _norm_head(head: int, weight: int, dim: int, eps: float) -> None:
    x, weights = floats(head, dim), floats(weight, dim)
    squares = ZERO
    for i in range(dim):
        squares += x[i] * x[i]
    factor = ONE / np.sqrt(squares / np.float32(dim) + np.float32(eps))
    for i in range(dim):
        x[i] *= factor * weights[i]


@inlined
def _rotate_heads(heads: int, num_heads: int, cos: int, sin: int, half: int) -> None:
    tail = half - half % LANES
    for head in range(num_heads):
        low = heads + 2 * head * half * FLOAT_BYTES
        high = low + half * FLOAT_BYTES
        for i in range(0, tail * FLOAT_BYTES, LANES * FLOAT_BYTES):
            a, b, c, s = load(low + i), load(high + i), load(cos + i), load(sin + i)
            store(low + i, subtract(multiply(a, c), multiply(b, s)))
            store(high + i, add(multiply(b, c), multiply(a, s)))
        lows, highs = floats(low, half), floats(high, half)
        cosines, sines = floats(cos, half), floats(sin, half)
        for i in range(tail, half):
            x, y = lows[i], highs[i]
            lows[i] = x * cosines[i] - y * sines[i]
            highs[i] = y * cosines[i] + x * sines[i]


@inlined
def _store_bf16(source: int, target: int, length: int) -> None:
    tail = length - length % LANES
    for i in range(0, tail, LANES):
        store_bf16(target + i * 2, load(source + i * FLOAT_BYTES))
    numbers, short = floats(source, length), bf16s(target, length)
    for i in range(tail, length):
        short[i] = bf16_of_float(numbers[i])


@body
def _rotate_and_store(
    qkv: int,
    cos: int,
    sin: int,
    slots: int,
    cache: int,
    heads: int,
    kv_heads: int,
    dim: int,
    q_norm: int,
    k_norm: int,
    eps: float,
    is_bf16: bool,
    start: int,
    stop: int,
) -> None:
    half = dim // 2
    width, entry = (heads + 2 * kv_heads) * dim, 2 * kv_heads * dim
    targets = int64s(slots, stop)
    for row in range(start, stop):
        own = qkv + row * width * FLOAT_BYTES
        if q_norm != 0:
            for head in range(heads + kv_heads):
                weight = q_norm if head < heads else k_norm
                _norm_head(own + head * dim * FLOAT_BYTES, weight, dim, eps)
        cosines, sines = cos + row * dim * FLOAT_BYTES, sin + (row * dim + half) * FLOAT_BYTES
        _rotate_heads(own, heads + kv_heads, cosines, sines, half)
        key_value = own + heads * dim * FLOAT_BYTES
        if is_bf16:
            _store_bf16(key_value, cache + targets[row] * entry * 2, entry)
        else:
            full = floats(cache + targets[row] * entry * FLOAT_BYTES, entry)
            full[:] = floats(key_value, entry)


@kernel
def rotate_and_store(
    qkv: int,
    cos: int,
    sin: int,
    slots: int,
    cache: int,
    heads: int,
    kv_heads: int,
    dim: int,
    q_norm: int,
    k_norm: int,
    eps: float,
    is_bf16: bool,
    rows: int,
    threads: int,
) -> None:
    """Norm of each head unless `q_norm` is 0, rotation in place, keys and values to the cache at `slots`."""
    parallel(
        _rotate_and_store,
        (qkv, cos, sin, slots, cache, heads, kv_heads, dim, q_norm, k_norm, eps, is_bf16),
        rows,
        threads,
    )


@body
def _argmax_rows(x: int, out: int, width: int, start: int, stop: int) -> None:
    winners = int64s(out, stop)
    for row in range(start, stop):
        best, best_value = 0, floats(x + row * width * FLOAT_BYTES, width)[0]
        for begin in range(0, width, _ARGMAX_BLOCK):
            length = min(_ARGMAX_BLOCK, width - begin)
            numbers = floats(x + (row * width + begin) * FLOAT_BYTES, length)
            largest = numbers[0]
            for i in range(length):
                largest = larger(largest, numbers[i])
            if largest > best_value or begin == 0:
                best_value = largest
                place = 0
                while place < length - 1 and numbers[place] != largest:
                    place += 1
                best = begin + place
        winners[row] = best


@kernel
def argmax_rows(x: int, out: int, rows: int, width: int, threads: int) -> None:
    """out [rows] int64 = where each row of x [rows, width] is largest; of equals the first."""
    parallel(_argmax_rows, (x, out, width), rows, threads)
