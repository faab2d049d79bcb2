"""The two kernels of `loraplex_server.kernels.lora_shrink`: for small row tiles, and for large ones."""

from __future__ import annotations

from loraplex_server.kernels.device_code import cast, dot, wait_for_previous
from loraplex_server.kernels.triton_runtime import Block, Pointer, Scalar, constexpr, jit, tl


@jit
def _row_tile(
    tiles_ptr: Pointer, records_ptr: Pointer, record_start: Scalar, slot_stride: Scalar
) -> tuple[Block, Block, Block, Block]:
    """Of this program: its first row, its rows, and of its adapter where A begins in the arena and the sum of ranks."""
    tile_ptr = tiles_ptr + tl.program_id(2) * 4
    num_rows = tl.load(tile_ptr + 1)
    slot = tl.load(tile_ptr + 2)
    is_adapted = (num_rows > 0) & (slot >= 0)
    record_ptr = records_ptr + record_start + slot.to(tl.int64) * slot_stride
    a_offset = tl.load(record_ptr, mask=is_adapted, other=0).to(tl.int64) * 8
    return tl.load(tile_ptr), num_rows, a_offset, tl.load(record_ptr + 1, mask=is_adapted, other=0)


@jit
def _is_last(counter_ptr: Pointer, SPLITS: constexpr) -> Block:
    """Whether the other programs of this counter are done and what they stored is visible; resets the counter."""
    tl.debug_barrier()  # every thread has stored before one of them counts
    is_last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if is_last:
        tl.store(counter_ptr, 0)
    return is_last


@jit
def _sum_of_parts(
    part_ptrs: Block,
    mask: Block,
    split_stride: Scalar,
    SPLITS: constexpr,
    BLOCK_M: constexpr,
    BLOCK_R: constexpr,
) -> Block:
    """The parts added in their order, past the first-level cache, which other programs' stores do not reach."""
    sums = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        sums += tl.load(part_ptrs + split * split_stride, mask=mask, other=0.0, cache_modifier=".cg")
    return sums


@jit
def shrink_small_tiles_kernel(
    x_ptr: Pointer,
    shrunk_ptr: Pointer,
    parts_ptr: Pointer,
    counters_ptr: Pointer,
    arena_ptr: Pointer,
    records_ptr: Pointer,
    tiles_ptr: Pointer,
    record_start: Scalar,  # of slot 0
    slot_stride: Scalar,
    x_stride: Scalar,
    split_stride: Scalar,
    IN_FEATURES: constexpr,
    SPLITS: constexpr,
    RANK_STRIDE: constexpr,
    RANK_GROUPS: constexpr,
    BLOCK_M: constexpr,
    BLOCK_R: constexpr,
    BLOCK_K: constexpr,
    PDL: constexpr,
) -> None:
    """Program (part of `in`, group of ranks, row tile); keeps its part of x in registers."""
    split = tl.program_id(0)
    group = tl.program_id(1)
    row_start, num_rows, a_offset, total_rank = _row_tile(tiles_ptr, records_ptr, record_start, slot_stride)
    features = split * BLOCK_K + tl.arange(0, BLOCK_K)
    feature_mask = features < IN_FEATURES
    ranks = group * BLOCK_R + tl.arange(0, BLOCK_R)
    a_ptrs = arena_ptr + a_offset + ranks[:, None] * IN_FEATURES + features[None, :]
    a = tl.load(a_ptrs, mask=(ranks[:, None] < total_rank) & feature_mask[None, :], other=0.0)
    wait_for_previous(PDL)
    if group * BLOCK_R < total_rank:
        rows = tl.arange(0, BLOCK_M)
        row_mask = rows < num_rows
        rows = (row_start + rows).to(tl.int64)
        x = tl.load(
            x_ptr + rows[:, None] * x_stride + features[None, :],
            mask=row_mask[:, None] & feature_mask[None, :],
            other=0.0,
        )
        places = rows[:, None] * RANK_STRIDE + ranks[None, :]
        part_ptrs = parts_ptr + places
        step = RANK_GROUPS * BLOCK_R
        for first in range(0, total_rank - group * BLOCK_R, step):
            following = first + step
            a_next = tl.load(
                a_ptrs + following * IN_FEATURES,
                mask=(ranks[:, None] < total_rank - following) & feature_mask[None, :],
                other=0.0,
            )
            sums = dot(x, tl.trans(a), tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32))
            mask = row_mask[:, None] & (ranks[None, :] < total_rank - first)
            tl.store(part_ptrs + split * split_stride + first, sums, mask=mask)
            a = a_next
        counter_ptr = counters_ptr + tl.program_id(2) * RANK_GROUPS + group
        if _is_last(counter_ptr, SPLITS):
            for first in range(0, total_rank - group * BLOCK_R, step):
                mask = row_mask[:, None] & (ranks[None, :] < total_rank - first)
                sums = _sum_of_parts(part_ptrs + first, mask, split_stride, SPLITS, BLOCK_M, BLOCK_R)
                tl.store(shrunk_ptr + places + first, cast(sums, shrunk_ptr.dtype.element_ty), mask=mask)


@jit
def shrink_large_tiles_kernel(
    x_ptr: Pointer,
    shrunk_ptr: Pointer,
    parts_ptr: Pointer,
    counters_ptr: Pointer,
    arena_ptr: Pointer,
    records_ptr: Pointer,
    tiles_ptr: Pointer,
    record_start: Scalar,
    slot_stride: Scalar,
    x_stride: Scalar,
    split_stride: Scalar,
    IN_FEATURES: constexpr,
    SPLITS: constexpr,
    RANK_STRIDE: constexpr,
    PART: constexpr,
    BLOCK_M: constexpr,
    BLOCK_R: constexpr,
    BLOCK_K: constexpr,
    PDL: constexpr,
) -> None:
    """Program (part of `in`, block of ranks, row tile); streams x and A through a pipelined loop."""
    split = tl.program_id(0)
    first_rank = tl.program_id(1) * BLOCK_R
    row_start, num_rows, a_offset, total_rank = _row_tile(tiles_ptr, records_ptr, record_start, slot_stride)
    wait_for_previous(PDL)
    if first_rank < total_rank:
        rows = tl.arange(0, BLOCK_M)
        row_mask = rows < num_rows
        rows = (row_start + rows).to(tl.int64)
        ranks = first_rank + tl.arange(0, BLOCK_R)
        rank_mask = ranks < total_rank
        x_ptrs = x_ptr + rows[:, None] * x_stride
        a_ptrs = arena_ptr + a_offset + ranks[None, :] * IN_FEATURES
        sums = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        for start in range(split * PART, min((split + 1) * PART, IN_FEATURES), BLOCK_K):
            features = start + tl.arange(0, BLOCK_K)
            feature_mask = features < IN_FEATURES
            x = tl.load(x_ptrs + features[None, :], mask=row_mask[:, None] & feature_mask[None, :], other=0.0)
            a = tl.load(
                a_ptrs + features[:, None], mask=feature_mask[:, None] & rank_mask[None, :], other=0.0
            )
            sums = dot(x, a, sums)
        places = rows[:, None] * RANK_STRIDE + ranks[None, :]
        mask = row_mask[:, None] & rank_mask[None, :]
        tl.store(parts_ptr + split * split_stride + places, sums, mask=mask)
        counter_ptr = counters_ptr + tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        if _is_last(counter_ptr, SPLITS):
            sums = _sum_of_parts(parts_ptr + places, mask, split_stride, SPLITS, BLOCK_M, BLOCK_R)
            tl.store(shrunk_ptr + places, cast(sums, shrunk_ptr.dtype.element_ty), mask=mask)
