"""Paged attention of decode rows: one query row per sequence, its context cut into parts of fixed length.

A short piece of a prompt can come as such rows too, each with its own context in the same pages.

The parts of one sequence run side by side and are combined in a fixed order. Where they begin depends on positions
alone, so a row's result does not depend on what else is in the batch. A bounded number of programs shares the parts of
a row out, so that a launch made for long contexts costs little when they are short. The query heads that share a key
head stand as rows of one product, so keys and values are read once.
"""

from __future__ import annotations

from torch import Tensor

from loraplex_server.kernels.device_code import cast, dot, wait_for_previous
from loraplex_server.kernels.paged_attention import AttentionShape
from loraplex_server.kernels.triton_runtime import (
    Pointer,
    Scalar,
    constexpr,
    jit,
    next_power_of_2,
    overlaps_launches,
    require,
    tl,
)

PART_TOKENS = 256  # positions of one part
_BLOCK_TOKENS = 128  # positions of one product
_PROGRAMS = 2048  # of a launch of few rows: more than run at once
_LEAST_PROGRAMS = 16  # of each row and key head: one row may be far longer than the others
_NUM_WARPS = 4
_NUM_STAGES = 3  # of the pipeline that looks up a block, then reads it, then multiplies
_LOG2_E = 1.4426950408889634


def num_parts(max_context: int) -> int:
    """Parts that a context of at most `max_context` positions is cut into."""
    return max(1, -(-max_context // PART_TOKENS))


@jit
def _decode_attention_kernel(
    queries_ptr: Pointer,
    cache_ptr: Pointer,
    tables_ptr: Pointer,
    lengths_ptr: Pointer,
    out_ptr: Pointer,
    part_out_ptr: Pointer,
    part_state_ptr: Pointer,
    scale: Scalar,  # of the logits, in base 2
    query_stride: Scalar,
    table_stride: Scalar,
    window: Scalar,
    KV_HEADS: constexpr,
    GROUP: constexpr,  # query heads of a key head
    HEAD_DIM: constexpr,
    BLOCK_SIZE: constexpr,
    PARTS: constexpr,
    PART: constexpr,
    BLOCK_G: constexpr,
    BLOCK_T: constexpr,
    HAS_WINDOW: constexpr,
    PDL: constexpr,
) -> None:
    """Program (key head, sequence, its first part): that part, and each that lies a number of programs behind."""
    head = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    wait_for_previous(PDL)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    used_parts = tl.maximum((length + PART - 1) // PART, 1)
    first_part = tl.program_id(2)
    if HAS_WINDOW:
        first_part += tl.maximum(length - window, 0) // BLOCK_T * BLOCK_T // PART
    if first_part < used_parts:
        group = tl.arange(0, BLOCK_G)
        dims = tl.arange(0, HEAD_DIM)
        query_heads = head * GROUP + group
        group_mask = group < GROUP
        q = tl.load(
            queries_ptr + sequence * query_stride + query_heads[:, None] * HEAD_DIM + dims[None, :],
            mask=group_mask[:, None],
            other=0.0,
        )
        for part in range(first_part, used_parts, tl.num_programs(2)):
            start = part * PART
            stop = tl.minimum(start + PART, length)
            first = start
            if HAS_WINDOW:
                first = tl.maximum(start, (length - window) // BLOCK_T * BLOCK_T)
            top = tl.full((BLOCK_G,), -1e30, dtype=tl.float32)
            total = tl.zeros((BLOCK_G,), dtype=tl.float32)
            attended = tl.zeros((BLOCK_G, HEAD_DIM), dtype=tl.float32)
            for block in range(first, stop, BLOCK_T):
                positions = block + tl.arange(0, BLOCK_T)
                mask = positions < stop
                ids = tl.load(
                    tables_ptr + sequence * table_stride + positions // BLOCK_SIZE, mask=mask, other=0
                ).to(tl.int64)
                entries = (ids * BLOCK_SIZE + positions % BLOCK_SIZE) * (2 * KV_HEADS * HEAD_DIM)
                key_ptrs = cache_ptr + entries[:, None] + head * HEAD_DIM + dims[None, :]
                keys = tl.load(key_ptrs, mask=mask[:, None], other=0.0)
                values = tl.load(key_ptrs + KV_HEADS * HEAD_DIM, mask=mask[:, None], other=0.0)
                logits = dot(q, tl.trans(keys), tl.zeros((BLOCK_G, BLOCK_T), dtype=tl.float32)) * scale
                visible = mask
                if HAS_WINDOW:
                    visible = mask & (positions >= length - window)
                logits = tl.where(visible[None, :], logits, -1e30)
                new_top = tl.maximum(top, tl.max(logits, axis=1))
                weights = tl.where(visible[None, :], tl.exp2(logits - new_top[:, None]), 0.0)
                fade = tl.exp2(top - new_top)
                total = total * fade + tl.sum(weights, axis=1)
                attended = dot(cast(weights, values.dtype), values, attended * fade[:, None])
                top = new_top
            # A row without context, as padding has, gets zeros.
            attended = attended / tl.where(total > 0, total, 1.0)[:, None]
            if PARTS == 1:
                tl.store(
                    out_ptr
                    + sequence * (KV_HEADS * GROUP * HEAD_DIM)
                    + query_heads[:, None] * HEAD_DIM
                    + dims[None, :],
                    cast(attended, out_ptr.dtype.element_ty),
                    mask=group_mask[:, None],
                )
            else:
                index = (sequence * (KV_HEADS * GROUP) + query_heads) * PARTS + part
                tl.store(
                    part_out_ptr + index[:, None] * HEAD_DIM + dims[None, :],
                    attended,
                    mask=group_mask[:, None],
                )
                tl.store(part_state_ptr + index * 2, top, mask=group_mask)
                tl.store(part_state_ptr + index * 2 + 1, total, mask=group_mask)


@jit
def _combine_kernel(
    lengths_ptr: Pointer,
    out_ptr: Pointer,
    part_out_ptr: Pointer,
    part_state_ptr: Pointer,
    window: Scalar,
    HEADS: constexpr,
    HEAD_DIM: constexpr,
    PARTS: constexpr,
    PART: constexpr,
    BLOCK_P: constexpr,
    BLOCK_T: constexpr,
    HAS_WINDOW: constexpr,
    PDL: constexpr,
) -> None:
    """Program (query head, sequence): the mean of its parts, weighted by their sums."""
    head = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, HEAD_DIM)
    wait_for_previous(PDL)
    length = tl.load(lengths_ptr + sequence).to(tl.int32)
    used_parts = tl.maximum((length + PART - 1) // PART, 1)
    first_part = 0
    if HAS_WINDOW:
        first_part = tl.maximum(length - window, 0) // BLOCK_T * BLOCK_T // PART
    index = (sequence * HEADS + head) * PARTS
    top = tl.full((), -1e30, dtype=tl.float32)
    total = tl.zeros((), dtype=tl.float32)
    attended = tl.zeros((HEAD_DIM,), dtype=tl.float32)
    for first in range(first_part // BLOCK_P * BLOCK_P, used_parts, BLOCK_P):
        parts = first + tl.arange(0, BLOCK_P)
        mask = (parts >= first_part) & (parts < used_parts)
        tops = tl.load(part_state_ptr + (index + parts) * 2, mask=mask, other=-1e30)
        totals = tl.load(part_state_ptr + (index + parts) * 2 + 1, mask=mask, other=0.0)
        means = tl.load(
            part_out_ptr + (index + parts)[:, None] * HEAD_DIM + dims[None, :], mask=mask[:, None], other=0.0
        )
        new_top = tl.maximum(top, tl.max(tops, axis=0))
        weights = tl.exp2(tops - new_top) * totals
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weights, axis=0)
        attended = attended * fade + tl.sum(weights[:, None] * means, axis=0)
        top = new_top
    attended = attended / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + (sequence * HEADS + head) * HEAD_DIM + dims, cast(attended, out_ptr.dtype.element_ty))


def decode_attention(
    queries: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    context_lengths: Tensor,
    max_context: int,
    out: Tensor,
    part_out: Tensor,
    part_state: Tensor,
    shape: AttentionShape,
) -> None:
    """Attention of one row per sequence over its pages; rows with a context of 0 get zeros.

    queries          [n, num_heads, head_dim], a row's heads contiguous
    cache            [num_blocks, block_size, 2 · num_kv_heads · head_dim], keys then values; same dtype as queries
    block_tables     [n, >= ceil(max_context / block_size)] int32 or int64; entries past a context are not read
    context_lengths  [n] int32 or int64, at most max_context, the row's own position included
    max_context      decides where parts are left and how many there may be; Triton compiles a kernel for each
    out              [n, num_heads · head_dim], contiguous
    part_out         fp32, >= n · num_heads · num_parts(max_context) · head_dim elements of scratch
    part_state       fp32, >= n · num_heads · num_parts(max_context) · 2 elements of scratch
    """
    num_rows, num_heads, head_dim = queries.shape
    block_size = cache.shape[1]
    kv_heads = shape.num_kv_heads
    parts = num_parts(max_context)
    require((num_heads, head_dim) == (shape.num_heads, shape.head_dim), "queries do not fit the shape")
    require(head_dim in (16, 32, 64, 128, 256), f"head_dim {head_dim} is not a power of two in 16..256")
    require(cache.shape[2] == 2 * kv_heads * head_dim and cache.is_contiguous(), "cache has another layout")
    require(cache.dtype == queries.dtype == out.dtype, "queries, cache and out must have one dtype")
    require(queries.stride(1) == head_dim and queries.stride(2) == 1, "a row's heads must be contiguous")
    require(out.shape == (num_rows, num_heads * head_dim) and out.is_contiguous(), "out has another shape")
    require(
        block_tables.shape[0] >= num_rows
        and block_tables.stride(1) == 1
        and block_tables.shape[1] * block_size >= max_context,
        f"block_tables {tuple(block_tables.shape)} do not hold {num_rows} contexts of {max_context}",
    )
    require(context_lengths.shape[0] >= num_rows, "context_lengths are too few")
    num_states = num_rows * num_heads * parts
    require(
        parts == 1 or (part_out.numel() >= num_states * head_dim and part_state.numel() >= num_states * 2),
        f"scratch is too small for {num_states} parts",
    )
    window = shape.sliding_window
    pdl = overlaps_launches(queries)
    programs = min(parts, max(_LEAST_PROGRAMS, _PROGRAMS // (kv_heads * num_rows)))
    _decode_attention_kernel[(kv_heads, num_rows, programs)](
        queries,
        cache,
        block_tables,
        context_lengths,
        out,
        part_out,
        part_state,
        head_dim**-0.5 * _LOG2_E,
        queries.stride(0),
        block_tables.stride(0),
        window or 0,
        KV_HEADS=kv_heads,
        GROUP=num_heads // kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        PARTS=parts,
        PART=PART_TOKENS,
        BLOCK_G=max(16, next_power_of_2(num_heads // kv_heads)),
        BLOCK_T=_BLOCK_TOKENS,
        HAS_WINDOW=window is not None,
        PDL=pdl,
        num_warps=_NUM_WARPS,
        num_stages=_NUM_STAGES,
        launch_pdl=pdl,
    )
    if parts == 1:
        return
    _combine_kernel[(num_heads, num_rows)](
        context_lengths,
        out,
        part_out,
        part_state,
        window or 0,
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        PARTS=parts,
        PART=PART_TOKENS,
        BLOCK_P=min(32, next_power_of_2(parts)),
        BLOCK_T=_BLOCK_TOKENS,
        HAS_WINDOW=window is not None,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
    )
