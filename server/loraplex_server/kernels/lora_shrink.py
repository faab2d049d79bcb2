"""LoRA's first product, A x, for all adapters of a batch in one launch.

The sum over `in` is split into parts of fixed length, whatever else is in the batch. Programs leave their parts in
scratch, and the one that finishes last adds them in the order of the parts. So a row's result depends on the row and
its adapter alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.device_code import cast, dot, wait_for_previous
from loraplex_server.kernels.lora_scratch import (
    PREFILL_RANKS,
    LoraScratch,
    decode_part,
    max_rank_groups,
    num_splits,
)
from loraplex_server.kernels.lora_tables import (
    DECODE_TILE_ROWS,
    PREFILL_TILE_ROWS,
    LoraTables,
    ProjectionShape,
)
from loraplex_server.kernels.triton_runtime import (
    Block,
    Pointer,
    Scalar,
    constexpr,
    jit,
    next_power_of_2,
    overlaps_launches,
    require,
    tl,
)


@dataclass(frozen=True, slots=True)
class ShrinkConfig:
    """How the decode kernel is cut."""

    block_r: int  # ranks per product
    rank_groups: int  # programs that share the ranks of one tile
    num_warps: int


DECODE_CONFIGS: tuple[tuple[int, ShrinkConfig], ...] = (
    (4, ShrinkConfig(block_r=16, rank_groups=4, num_warps=4)),
    (16, ShrinkConfig(block_r=32, rank_groups=4, num_warps=4)),
    (1 << 30, ShrinkConfig(block_r=32, rank_groups=2, num_warps=4)),
)
"""(row tiles up to, configuration): few tiles need more programs each to fill the device."""


def lora_shrink_reference(
    x: Tensor,
    tables: LoraTables,
    row_tiles: Tensor,
    layer: int,
    projection: ProjectionShape,
    rank_stride: int,
) -> Tensor:
    """The sums [rows, rank_stride] fp32; NaN where a row's adapter has no such rank."""
    shrunk = torch.full((x.shape[0], rank_stride), torch.nan)
    for row_start, num_rows, slot, _ in row_tiles.tolist():
        if num_rows == 0 or slot < 0:
            continue
        a_unit, total_rank = tables.records[slot, layer, projection.index, :2].tolist()
        a = tables.arena[a_unit * 8 :][: total_rank * projection.in_features].view(
            total_rank, projection.in_features
        )
        rows = slice(row_start, row_start + num_rows)
        shrunk[rows, :total_rank] = x[rows].float() @ a.float().t()
    return shrunk


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
def _shrink_decode_kernel(
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
    tile_ptr = tiles_ptr + tl.program_id(2) * 4
    row_start = tl.load(tile_ptr)
    num_rows = tl.load(tile_ptr + 1)
    slot = tl.load(tile_ptr + 2)
    is_adapted = (num_rows > 0) & (slot >= 0)
    record_ptr = records_ptr + record_start + slot.to(tl.int64) * slot_stride
    a_offset = tl.load(record_ptr, mask=is_adapted, other=0).to(tl.int64) * 8
    total_rank = tl.load(record_ptr + 1, mask=is_adapted, other=0)
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
def _shrink_prefill_kernel(
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
    tile_ptr = tiles_ptr + tl.program_id(2) * 4
    row_start = tl.load(tile_ptr)
    num_rows = tl.load(tile_ptr + 1)
    slot = tl.load(tile_ptr + 2)
    is_adapted = (num_rows > 0) & (slot >= 0)
    record_ptr = records_ptr + record_start + slot.to(tl.int64) * slot_stride
    a_offset = tl.load(record_ptr, mask=is_adapted, other=0).to(tl.int64) * 8
    total_rank = tl.load(record_ptr + 1, mask=is_adapted, other=0)
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


def lora_shrink(
    x: Tensor,
    shrunk: Tensor,
    scratch: LoraScratch,
    tables: LoraTables,
    row_tiles: Tensor,
    layer: int,
    projection: ProjectionShape,
    tile_rows: int,
) -> None:
    """A x of each row, for all modules of a projection at once.

    x          [n, in], rows contiguous and 16-byte aligned, in the arena's dtype
    shrunk     [>= n, rank_stride] contiguous, in the arena's dtype; rank_stride is at least the largest sum of ranks of
               an adapter's modules. Written where the row's adapter has a rank, else left as it is
    scratch    num_splits(in, tile_rows) · n · rank_stride parts, max_rank_groups(rank_stride) counters per row tile
    row_tiles  [tiles, 4] int32 of `row_tile_table`, planned with `tile_rows`
    tile_rows  DECODE_TILE_ROWS or PREFILL_TILE_ROWS
    """
    check_shrink(x, shrunk, tables, row_tiles, projection)
    _check_scratch(x, shrunk, scratch, row_tiles, tile_rows)
    num_rows, in_features = x.shape
    splits, rank_stride = num_splits(in_features, tile_rows), shrunk.shape[1]
    record_start, slot_stride = tables.record_start(layer, projection), tables.slot_stride
    operands = (x, shrunk, scratch.parts, scratch.counters, tables.arena, tables.records, row_tiles)
    pdl = overlaps_launches(x)
    arguments = (*operands, record_start, slot_stride, x.stride(0), num_rows * rank_stride)
    if tile_rows == DECODE_TILE_ROWS:
        config = next(c for limit, c in DECODE_CONFIGS if row_tiles.shape[0] <= limit)
        # More groups than there can be blocks of ranks would only exit.
        groups = min(config.rank_groups, -(-rank_stride // config.block_r))
        _shrink_decode_kernel[(splits, groups, row_tiles.shape[0])](
            *arguments,
            IN_FEATURES=in_features,
            SPLITS=splits,
            RANK_STRIDE=rank_stride,
            RANK_GROUPS=groups,
            BLOCK_M=tile_rows,
            BLOCK_R=config.block_r,
            BLOCK_K=decode_part(in_features),
            PDL=pdl,
            num_warps=config.num_warps,
            launch_pdl=pdl,
        )
        return
    require(tile_rows == PREFILL_TILE_ROWS, f"no configuration for tiles of {tile_rows} rows")
    block_r = min(PREFILL_RANKS, max(16, next_power_of_2(rank_stride)))
    block_k = 64
    _shrink_prefill_kernel[(splits, -(-rank_stride // block_r), row_tiles.shape[0])](
        *arguments,
        IN_FEATURES=in_features,
        SPLITS=splits,
        RANK_STRIDE=rank_stride,
        PART=-(-in_features // (splits * block_k)) * block_k,
        BLOCK_M=tile_rows,
        BLOCK_R=block_r,
        BLOCK_K=block_k,
        PDL=pdl,
        num_warps=4,
        num_stages=4,
        launch_pdl=pdl,
    )


def check_shrink(
    x: Tensor, shrunk: Tensor, tables: LoraTables, row_tiles: Tensor, projection: ProjectionShape
) -> None:
    """Raises ValueError unless the operands are as `lora_shrink` wants them; its scratch is another matter."""
    num_rows, in_features = x.shape
    require(in_features == projection.in_features, f"x {tuple(x.shape)} is not [n, {projection.in_features}]")
    is_aligned = x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0
    require(x.stride(1) == 1 and is_aligned, "rows of x must be contiguous and 16-byte aligned")
    require(in_features % 8 == 0, f"in_features {in_features} is not a multiple of 8")
    require(x.dtype == tables.arena.dtype, f"x is {x.dtype}, the arena {tables.arena.dtype}")
    require(
        shrunk.dtype == x.dtype and shrunk.is_contiguous() and shrunk.shape[0] >= num_rows,
        f"shrunk {tuple(shrunk.shape)} does not hold {num_rows} contiguous rows of {x.dtype}",
    )
    require(
        row_tiles.dtype == torch.int32 and row_tiles.is_contiguous(), "row_tiles must be contiguous int32"
    )


def _check_scratch(
    x: Tensor, shrunk: Tensor, scratch: LoraScratch, row_tiles: Tensor, tile_rows: int
) -> None:
    num_rows, in_features = x.shape
    rank_stride = shrunk.shape[1]
    num_parts = num_splits(in_features, tile_rows) * num_rows * rank_stride
    num_counters = row_tiles.shape[0] * max_rank_groups(rank_stride)
    require(
        scratch.parts.numel() >= num_parts and scratch.counters.numel() >= num_counters,
        f"scratch is too small for {num_parts} parts and {num_counters} counters",
    )
