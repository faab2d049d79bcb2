"""LoRA's first product, A x, for all adapters of a batch in one launch.

The sum over `in` is split into parts of fixed length, whatever else is in the batch. Programs leave their parts in
scratch, and the one that finishes last adds them in the order of the parts. So a row's result depends on the row and
its adapter alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.lora_scratch import (
    LARGE_TILE_RANKS,
    LoraScratch,
    max_rank_groups,
    num_splits,
    small_tile_part,
)
from loraplex_server.kernels.lora_shrink_kernels import shrink_large_tiles_kernel, shrink_small_tiles_kernel
from loraplex_server.kernels.lora_tables import (
    LARGE_TILE_ROWS,
    SMALL_TILE_ROWS,
    LoraTables,
    ProjectionShape,
)
from loraplex_server.kernels.triton_runtime import next_power_of_2, overlaps_launches, require


@dataclass(frozen=True, slots=True)
class ShrinkConfig:
    """How the kernel of small tiles is cut."""

    block_r: int  # ranks per product
    rank_groups: int  # programs that share the ranks of one tile
    num_warps: int


SMALL_TILE_CONFIGS: tuple[tuple[int, ShrinkConfig], ...] = (
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
    tile_rows  SMALL_TILE_ROWS or LARGE_TILE_ROWS
    """
    check_shrink(x, shrunk, tables, row_tiles, projection)
    _check_scratch(x, shrunk, scratch, row_tiles, tile_rows)
    num_rows, in_features = x.shape
    splits, rank_stride = num_splits(in_features, tile_rows), shrunk.shape[1]
    record_start, slot_stride = tables.record_start(layer, projection), tables.slot_stride
    operands = (x, shrunk, scratch.parts, scratch.counters, tables.arena, tables.records, row_tiles)
    pdl = overlaps_launches(x)
    arguments = (*operands, record_start, slot_stride, x.stride(0), num_rows * rank_stride)
    if tile_rows == SMALL_TILE_ROWS:
        config = next(c for limit, c in SMALL_TILE_CONFIGS if row_tiles.shape[0] <= limit)
        # More groups than there can be blocks of ranks would only exit.
        groups = min(config.rank_groups, -(-rank_stride // config.block_r))
        shrink_small_tiles_kernel[(splits, groups, row_tiles.shape[0])](
            *arguments,
            IN_FEATURES=in_features,
            SPLITS=splits,
            RANK_STRIDE=rank_stride,
            RANK_GROUPS=groups,
            BLOCK_M=tile_rows,
            BLOCK_R=config.block_r,
            BLOCK_K=small_tile_part(in_features),
            PDL=pdl,
            num_warps=config.num_warps,
            launch_pdl=pdl,
        )
        return
    require(tile_rows == LARGE_TILE_ROWS, f"no configuration for tiles of {tile_rows} rows")
    block_r = min(LARGE_TILE_RANKS, max(16, next_power_of_2(rank_stride)))
    block_k = 64
    shrink_large_tiles_kernel[(splits, -(-rank_stride // block_r), row_tiles.shape[0])](
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
