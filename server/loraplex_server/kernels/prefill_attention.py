"""Paged attention of prefill chunks of many sequences in one launch: causal, over pages, earlier context included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from loraplex_server.kernels.device_code import cast, dot, wait_for_previous
from loraplex_server.kernels.paged_attention import AttentionShape
from loraplex_server.kernels.triton_runtime import (
    Block,
    Pointer,
    Scalar,
    constexpr,
    jit,
    overlaps_launches,
    require,
    tl,
)

TILE_ROWS = 64  # query rows of one program
_BLOCK_TOKENS = 64
_NUM_WARPS = 4
_NUM_STAGES = 3  # of the pipeline that looks up a block, then reads it, then multiplies
_LOG2_E = 1.4426950408889634


class QueryTile(NamedTuple):
    """Consecutive rows of one prefill chunk."""

    row_start: int  # in the batch
    num_rows: int
    position: int  # of the first row in its sequence
    table_row: int  # of the sequence in block_tables


def plan_query_tiles(chunks: Iterable[tuple[int, int, int, int]]) -> list[QueryTile]:
    """Tiles of chunks (first row, rows, position of the first row, row of block_tables), longest context first.

    The longest tiles start first, so that the launch does not end with one of them alone.
    """
    tiles = [
        QueryTile(row + start, min(TILE_ROWS, num_rows - start), position + start, table_row)
        for row, num_rows, position, table_row in chunks
        for start in range(0, num_rows, TILE_ROWS)
    ]
    return sorted(tiles, key=lambda tile: -tile.position)


def query_tile_table(tiles: list[QueryTile], capacity: int) -> Tensor:
    """[capacity, 4] int32 on the host, fields as in QueryTile; unused entries have no rows."""
    require(len(tiles) <= capacity, f"{len(tiles)} query tiles do not fit a table of {capacity}")
    table = torch.zeros(capacity, 4, dtype=torch.int32)
    if tiles:
        table[: len(tiles)] = torch.tensor(tiles, dtype=torch.int32)
    return table


@jit
def _attend_blocks(
    q: Block,
    state: Block,  # (top, total, attended)
    first: Scalar,
    stop: Scalar,
    length: Scalar,
    row_positions: Block,
    window: Scalar,
    cache_ptr: Pointer,
    table_ptr: Pointer,
    head: Scalar,
    scale: Scalar,
    KV_HEADS: constexpr,
    HEAD_DIM: constexpr,
    BLOCK_SIZE: constexpr,
    BLOCK_T: constexpr,
    IS_MASKED: constexpr,
    HAS_WINDOW: constexpr,
) -> Block:
    """The online softmax over positions first..stop; IS_MASKED where some may lie after a row or its window."""
    top, total, attended = state
    dims = tl.arange(0, HEAD_DIM)
    for block in range(first, stop, BLOCK_T):
        positions = block + tl.arange(0, BLOCK_T)
        mask = positions < length
        ids = tl.load(table_ptr + positions // BLOCK_SIZE, mask=mask, other=0).to(tl.int64)
        entries = (ids * BLOCK_SIZE + positions % BLOCK_SIZE) * (2 * KV_HEADS * HEAD_DIM)
        key_ptrs = cache_ptr + entries[:, None] + head * HEAD_DIM + dims[None, :]
        keys = tl.load(key_ptrs, mask=mask[:, None], other=0.0)
        zeros = tl.zeros((q.shape[0], BLOCK_T), dtype=tl.float32)
        logits = dot(q, tl.trans(keys), zeros) * scale
        if IS_MASKED:
            visible = positions[None, :] <= row_positions[:, None]
            if HAS_WINDOW:
                visible = visible & (positions[None, :] > row_positions[:, None] - window)
            logits = tl.where(visible, logits, -1e30)
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        weights = tl.exp2(logits - new_top[:, None])
        if IS_MASKED:
            weights = tl.where(visible, weights, 0.0)
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weights, axis=1)
        values = tl.load(key_ptrs + KV_HEADS * HEAD_DIM, mask=mask[:, None], other=0.0)
        attended = dot(cast(weights, values.dtype), values, attended * fade[:, None])
        top = new_top
    return top, total, attended


@jit
def _prefill_attention_kernel(
    queries_ptr: Pointer,
    cache_ptr: Pointer,
    tables_ptr: Pointer,
    tiles_ptr: Pointer,
    out_ptr: Pointer,
    scale: Scalar,
    query_stride: Scalar,
    table_stride: Scalar,
    window: Scalar,
    HEADS: constexpr,
    KV_HEADS: constexpr,
    HEAD_DIM: constexpr,
    BLOCK_SIZE: constexpr,
    BLOCK_M: constexpr,
    BLOCK_T: constexpr,
    HAS_WINDOW: constexpr,
    PDL: constexpr,
) -> None:
    """Program (query head, query tile)."""
    head = tl.program_id(0)
    tile_ptr = tiles_ptr + tl.program_id(1) * 4
    row_start = tl.load(tile_ptr)
    num_rows = tl.load(tile_ptr + 1)
    position = tl.load(tile_ptr + 2)
    table_ptr = tables_ptr + tl.load(tile_ptr + 3).to(tl.int64) * table_stride
    wait_for_previous(PDL)
    if num_rows > 0:
        offsets = tl.arange(0, BLOCK_M)
        row_mask = offsets < num_rows
        rows = (row_start + offsets).to(tl.int64)
        dims = tl.arange(0, HEAD_DIM)
        q = tl.load(
            queries_ptr + rows[:, None] * query_stride + head * HEAD_DIM + dims[None, :],
            mask=row_mask[:, None],
            other=0.0,
        )
        state = (
            tl.full((BLOCK_M,), -1e30, dtype=tl.float32),
            tl.zeros((BLOCK_M,), dtype=tl.float32),
            tl.zeros((BLOCK_M, HEAD_DIM), dtype=tl.float32),
        )
        length = position + num_rows
        row_positions = position + offsets
        kv_head = head // (HEADS // KV_HEADS)
        if HAS_WINDOW:
            first = tl.maximum(position - window + 1, 0) // BLOCK_T * BLOCK_T
            whole = first
        else:
            first = 0
            whole = (position + 1) // BLOCK_T * BLOCK_T  # before it, every row sees every position
        state = _attend_blocks(
            q,
            state,
            first,
            whole,
            length,
            row_positions,
            window,
            cache_ptr,
            table_ptr,
            kv_head,
            scale,
            KV_HEADS,
            HEAD_DIM,
            BLOCK_SIZE,
            BLOCK_T,
            False,
            HAS_WINDOW,
        )
        _, total, attended = _attend_blocks(
            q,
            state,
            whole,
            length,
            length,
            row_positions,
            window,
            cache_ptr,
            table_ptr,
            kv_head,
            scale,
            KV_HEADS,
            HEAD_DIM,
            BLOCK_SIZE,
            BLOCK_T,
            True,
            HAS_WINDOW,
        )
        attended = attended / total[:, None]
        tl.store(
            out_ptr + rows[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + dims[None, :],
            cast(attended, out_ptr.dtype.element_ty),
            mask=row_mask[:, None],
        )


def prefill_attention(
    queries: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    query_tiles: Tensor,
    out: Tensor,
    shape: AttentionShape,
) -> None:
    """Causal attention of the rows that the query tiles name; other rows of `out` are left as they are.

    queries       [n, num_heads, head_dim], a row's heads contiguous
    cache         [num_blocks, block_size, 2 · num_kv_heads · head_dim], keys then values, the rows' own written
    block_tables  [sequences, max_blocks] int32 or int64; entries past a sequence's context are not read
    query_tiles   [tiles, 4] int32 of `query_tile_table`
    out           [n, num_heads · head_dim], contiguous
    """
    num_rows, num_heads, head_dim = queries.shape
    kv_heads = shape.num_kv_heads
    require((num_heads, head_dim) == (shape.num_heads, shape.head_dim), "queries do not fit the shape")
    require(head_dim in (16, 32, 64, 128, 256), f"head_dim {head_dim} is not a power of two in 16..256")
    require(cache.shape[2] == 2 * kv_heads * head_dim and cache.is_contiguous(), "cache has another layout")
    require(cache.dtype == queries.dtype == out.dtype, "queries, cache and out must have one dtype")
    require(queries.stride(1) == head_dim and queries.stride(2) == 1, "a row's heads must be contiguous")
    require(out.shape == (num_rows, num_heads * head_dim) and out.is_contiguous(), "out has another shape")
    require(query_tiles.dtype == torch.int32 and query_tiles.is_contiguous(), "query_tiles must be int32")
    require(block_tables.stride(1) == 1, "rows of block_tables must be contiguous")
    pdl = overlaps_launches(queries)
    _prefill_attention_kernel[(num_heads, query_tiles.shape[0])](
        queries,
        cache,
        block_tables,
        query_tiles,
        out,
        head_dim**-0.5 * _LOG2_E,
        queries.stride(0),
        block_tables.stride(0),
        shape.sliding_window or 0,
        HEADS=num_heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=cache.shape[1],
        BLOCK_M=TILE_ROWS,
        BLOCK_T=_BLOCK_TOKENS,
        HAS_WINDOW=shape.sliding_window is not None,
        PDL=pdl,
        num_warps=_NUM_WARPS,
        num_stages=_NUM_STAGES,
        launch_pdl=pdl,
    )
