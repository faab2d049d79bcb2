"""Attention of decode rows, straight from the blocks of the paged cache: nothing is gathered, nothing is masked."""

from __future__ import annotations

import numpy as np

from loraplex_server.kernels.cpu.numerics import (
    FLOAT_BYTES,
    ONE,
    ZERO,
    bf16s,
    exp,
    float_of_bf16,
    floats,
    int64s,
    larger,
    prefetch,
)
from loraplex_server.kernels.cpu.runtime import Value, body, inlined, kernel, parallel
from loraplex_server.kernels.cpu.vectors import (
    LANES,
    add,
    load,
    load_bf16,
    multiply,
    multiply_add,
    splat,
    store,
    total,
)

_BYTES = LANES * FLOAT_BYTES  # of a vector
_LOWEST_SCORE = np.float32(-3e38)


@inlined
def _load(address: int, element: int, is_bf16: bool) -> Value:
    """16 elements of the cache."""
    return load_bf16(address + element * 2) if is_bf16 else load(address + element * FLOAT_BYTES)


@inlined
def _load_one(address: int, element: int, is_bf16: bool) -> Value:
    if is_bf16:
        return float_of_bf16(bf16s(address + element * 2, 1)[0])
    return floats(address + element * FLOAT_BYTES, 1)[0]


@body
def _softmax(scores: Value, scale: float) -> None:
    """Of scores · scale, in place."""
    largest = _LOWEST_SCORE
    for i in range(scores.shape[0]):
        largest = larger(largest, scores[i])
    total = ZERO
    for i in range(scores.shape[0]):
        scores[i] = exp((scores[i] - largest) * scale)
        total += scores[i]
    share = ONE / total
    for i in range(scores.shape[0]):
        scores[i] *= share


@inlined
def _score(query: int, keys: int, stride: int, dim: int, is_bf16: bool, scores: Value) -> None:
    """scores[i] = query · keys[i]; four vectors of the query stay in registers."""
    scores[:] = ZERO
    quads, tail = dim - dim % (4 * LANES), dim - dim % LANES
    for d in range(0, quads, 4 * LANES):
        at = query + d * FLOAT_BYTES
        q0, q1, q2, q3 = load(at), load(at + _BYTES), load(at + 2 * _BYTES), load(at + 3 * _BYTES)
        for i in range(scores.shape[0]):
            key = i * stride + d
            even = multiply(q0, _load(keys, key, is_bf16))
            odd = multiply(q1, _load(keys, key + LANES, is_bf16))
            even = multiply_add(q2, _load(keys, key + 2 * LANES, is_bf16), even)
            odd = multiply_add(q3, _load(keys, key + 3 * LANES, is_bf16), odd)
            scores[i] += total(add(even, odd))
    for d in range(quads, tail, LANES):
        part = load(query + d * FLOAT_BYTES)
        for i in range(scores.shape[0]):
            scores[i] += total(multiply(part, _load(keys, i * stride + d, is_bf16)))
    for d in range(tail, dim):
        one = floats(query, dim)[d]
        for i in range(scores.shape[0]):
            scores[i] += one * _load_one(keys, i * stride + d, is_bf16)


@inlined
def _mix(weights: Value, values: int, stride: int, dim: int, is_bf16: bool, out: int) -> None:
    """out += sum of weights[i] · values[i]; four vectors of the sum stay in registers."""
    quads, tail = dim - dim % (4 * LANES), dim - dim % LANES
    for d in range(0, quads, 4 * LANES):
        at = out + d * FLOAT_BYTES
        s0, s1, s2, s3 = load(at), load(at + _BYTES), load(at + 2 * _BYTES), load(at + 3 * _BYTES)
        for i in range(weights.shape[0]):
            weight, value = splat(weights[i]), i * stride + d
            s0 = multiply_add(weight, _load(values, value, is_bf16), s0)
            s1 = multiply_add(weight, _load(values, value + LANES, is_bf16), s1)
            s2 = multiply_add(weight, _load(values, value + 2 * LANES, is_bf16), s2)
            s3 = multiply_add(weight, _load(values, value + 3 * LANES, is_bf16), s3)
        store(at, s0)
        store(at + _BYTES, s1)
        store(at + 2 * _BYTES, s2)
        store(at + 3 * _BYTES, s3)
    for d in range(quads, tail, LANES):
        part = load(out + d * FLOAT_BYTES)
        for i in range(weights.shape[0]):
            part = multiply_add(splat(weights[i]), _load(values, i * stride + d, is_bf16), part)
        store(out + d * FLOAT_BYTES, part)
    sums = floats(out, dim)
    for d in range(tail, dim):
        for i in range(weights.shape[0]):
            sums[d] += weights[i] * _load_one(values, i * stride + d, is_bf16)


@inlined
def _fetch(address: int, count: int, stride: int, length: int) -> None:
    """Start to fetch `length` bytes in each of `count` entries, `stride` bytes apart."""
    for i in range(count):
        for line in range(0, length, 64):
            prefetch(address + i * stride + line)


@body
def _attend_heads(
    queries: int,
    keys: int,
    values: int,
    table: Value,
    first: int,
    length: int,
    group: int,
    dim: int,
    entry: int,
    block_size: int,
    is_bf16: bool,
    out: int,
) -> None:
    """The query heads that share one key-value head, over positions [first, length) of one row."""
    scores = np.empty((group, length - first), np.float32)
    scale = ONE / np.sqrt(np.float32(dim))
    element = 2 if is_bf16 else FLOAT_BYTES
    last_block = (length - 1) // block_size
    for block in range(first // block_size, last_block + 1):
        begin, end = max(first, block * block_size), min(length, (block + 1) * block_size)
        # One head is a narrow column of the cache, which the CPU does not foresee.
        _fetch(
            values + table[block] * block_size * entry * element, block_size, entry * element, dim * element
        )
        if block < last_block:
            _fetch(
                keys + table[block + 1] * block_size * entry * element,
                block_size,
                entry * element,
                dim * element,
            )
        base = keys + (table[block] * block_size + begin - block * block_size) * entry * element
        for head in range(group):
            own = scores[head, begin - first : end - first]
            _score(queries + head * dim * FLOAT_BYTES, base, entry, dim, is_bf16, own)
    for head in range(group):
        _softmax(scores[head], scale)
    floats(out, group * dim)[:] = ZERO
    for block in range(first // block_size, (length - 1) // block_size + 1):
        begin, end = max(first, block * block_size), min(length, (block + 1) * block_size)
        base = values + (table[block] * block_size + begin - block * block_size) * entry * element
        for head in range(group):
            own = scores[head, begin - first : end - first]
            _mix(own, base, entry, dim, is_bf16, out + head * dim * FLOAT_BYTES)


@body
def _decode_attention(
    queries: int,
    query_stride: int,
    out: int,
    cache: int,
    tables: int,
    table_stride: int,
    lengths: int,
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    window: int,
    is_bf16: bool,
    start: int,
    stop: int,
) -> None:
    """Item: one key-value head of one row, with all the query heads that share it."""
    group, entry = heads // kv_heads, 2 * kv_heads * dim
    element = 2 if is_bf16 else FLOAT_BYTES
    for item in range(start, stop):
        row, kv_head = item // kv_heads, item % kv_heads
        length = int64s(lengths, row + 1)[row]
        first = max(length - window, 0) if window > 0 else 0
        table = int64s(tables + row * table_stride * 8, table_stride)
        keys = cache + kv_head * dim * element
        values = keys + kv_heads * dim * element
        own_queries = queries + (row * query_stride + kv_head * group * dim) * FLOAT_BYTES
        own_out = out + (row * heads + kv_head * group) * dim * FLOAT_BYTES
        _attend_heads(
            own_queries, keys, values, table, first, length, group, dim, entry, block_size, is_bf16, own_out
        )


@kernel
def decode_attention(
    queries: int,
    query_stride: int,
    out: int,
    cache: int,
    tables: int,
    table_stride: int,
    lengths: int,
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    window: int,
    is_bf16: bool,
    rows: int,
    threads: int,
) -> None:
    """out [rows, heads · dim]; queries have `query_stride` elements a row; window 0 sees all."""
    parallel(
        _decode_attention,
        (
            queries,
            query_stride,
            out,
            cache,
            tables,
            table_stride,
            lengths,
            heads,
            kv_heads,
            dim,
            block_size,
            window,
            is_bf16,
        ),
        rows * kv_heads,
        threads,
    )
