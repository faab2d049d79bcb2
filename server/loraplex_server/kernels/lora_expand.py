"""LoRA's second product, B (A x), for all adapters of a batch and all modules of a projection: added or by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.device_code import cast, dot, wait_for_previous
from loraplex_server.kernels.lora_tables import (
    LARGE_TILE_ROWS,
    SMALL_TILE_ROWS,
    LoraTables,
    ProjectionShape,
)
from loraplex_server.kernels.triton_runtime import (
    Pointer,
    Scalar,
    constexpr,
    jit,
    overlaps_launches,
    require,
    tl,
)


@dataclass(frozen=True, slots=True)
class ExpandConfig:
    """How the kernel is cut."""

    block_n: int  # columns of one program
    block_r: int  # ranks per product
    num_warps: int


CONFIGS: dict[int, tuple[tuple[int, ExpandConfig], ...]] = {
    SMALL_TILE_ROWS: (
        (4, ExpandConfig(block_n=64, block_r=16, num_warps=4)),
        (16, ExpandConfig(block_n=128, block_r=32, num_warps=4)),
        (1 << 30, ExpandConfig(block_n=256, block_r=16, num_warps=4)),
    ),
    LARGE_TILE_ROWS: ((1 << 30, ExpandConfig(block_n=128, block_r=16, num_warps=4)),),
}
"""Rows of a tile -> (row tiles up to, configuration)."""


def lora_expand_reference(
    shrunk: Tensor, y: Tensor, tables: LoraTables, row_tiles: Tensor, layer: int, projection: ProjectionShape
) -> None:
    """y [n, out] += B shrunk in place, with shrunk [n, rank_stride] already summed."""
    for row_start, num_rows, slot, _ in row_tiles.tolist():
        if num_rows == 0 or slot < 0:
            continue
        rows = slice(row_start, row_start + num_rows)
        _, _, *rest = tables.records[slot, layer, projection.index].tolist()
        column, rank_start = 0, 0
        for width, b_unit, rank in zip(projection.widths, rest[:3], rest[3:], strict=False):
            b = tables.arena[b_unit * 8 :][: rank * width].view(rank, width)
            delta = shrunk[rows, rank_start : rank_start + rank] @ b.float()
            y[rows, column : column + width] = (y[rows, column : column + width].float() + delta).to(y.dtype)
            column, rank_start = column + width, rank_start + rank


@jit
def _expand_kernel(
    y_ptr: Pointer,
    shrunk_ptr: Pointer,
    arena_ptr: Pointer,
    records_ptr: Pointer,
    tiles_ptr: Pointer,
    record_start: Scalar,
    slot_stride: Scalar,
    y_stride: Scalar,
    END_0: constexpr,  # where the modules' columns end
    END_1: constexpr,
    END_2: constexpr,
    RANK_STRIDE: constexpr,
    BLOCK_M: constexpr,
    BLOCK_N: constexpr,
    BLOCK_R: constexpr,
    ADDS: constexpr,
    PDL: constexpr,
) -> None:
    """Program (block of columns within one module, row tile).

    The first rows of B are requested before the wait, and later ones before the product that precedes theirs.
    """
    block = tl.program_id(0)
    first_1 = (END_0 + BLOCK_N - 1) // BLOCK_N  # the second module's first block
    first_2 = first_1 + (END_1 - END_0 + BLOCK_N - 1) // BLOCK_N
    module = (block >= first_1).to(tl.int32) + (block >= first_2).to(tl.int32)
    first_block = tl.where(module == 0, 0, tl.where(module == 1, first_1, first_2))
    first_column = tl.where(module == 0, 0, tl.where(module == 1, END_0, END_1))
    width = tl.where(module == 0, END_0, tl.where(module == 1, END_1 - END_0, END_2 - END_1))
    width = tl.multiple_of(width, 8)
    first_column = tl.multiple_of(first_column, 8)
    tile_ptr = tiles_ptr + tl.program_id(1) * 4
    row_start = tl.load(tile_ptr)
    num_rows = tl.load(tile_ptr + 1)
    slot = tl.load(tile_ptr + 2)
    is_adapted = (num_rows > 0) & (slot >= 0)
    rows = tl.arange(0, BLOCK_M)
    row_mask = rows < num_rows
    rows = (row_start + rows).to(tl.int64)
    columns = (block - first_block) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = columns < width
    record_ptr = records_ptr + record_start + slot.to(tl.int64) * slot_stride
    rank = tl.load(record_ptr + 5 + module, mask=is_adapted, other=0)
    rank_start = tl.load(record_ptr + 5, mask=is_adapted & (module > 0), other=0)
    rank_start += tl.load(record_ptr + 6, mask=is_adapted & (module > 1), other=0)
    b_offset = tl.load(record_ptr + 2 + module, mask=is_adapted, other=0).to(tl.int64) * 8
    ranks = tl.arange(0, BLOCK_R)
    b_ptrs = arena_ptr + b_offset + ranks[:, None] * width + columns[None, :]
    b = tl.load(b_ptrs, mask=(ranks[:, None] < rank) & column_mask[None, :], other=0.0)
    wait_for_previous(PDL)
    delta = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    shrunk_ptrs = shrunk_ptr + rows[:, None] * RANK_STRIDE + rank_start + ranks[None, :]
    for first in range(0, rank, BLOCK_R):
        mask = row_mask[:, None] & (ranks[None, :] < rank - first)
        shrunk = tl.load(shrunk_ptrs + first, mask=mask, other=0.0)
        following = first + BLOCK_R
        b_next = tl.load(
            b_ptrs + following * width,
            mask=(ranks[:, None] < rank - following) & column_mask[None, :],
            other=0.0,
        )
        delta = dot(shrunk, b, delta)
        b = b_next
    y_ptrs = y_ptr + rows[:, None] * y_stride + first_column + columns[None, :]
    mask = row_mask[:, None] & column_mask[None, :]
    if ADDS:
        if is_adapted:
            y = tl.load(y_ptrs, mask=mask, other=0.0)
            tl.store(y_ptrs, cast(y.to(tl.float32) + delta, y.dtype), mask=mask)
    else:
        tl.store(y_ptrs, cast(delta, y_ptr.dtype.element_ty), mask=mask)


def lora_expand(
    shrunk: Tensor,
    y: Tensor,
    tables: LoraTables,
    row_tiles: Tensor,
    layer: int,
    projection: ProjectionShape,
    tile_rows: int,
    *,
    adds: bool,
) -> None:
    """y += B (A x) in place, or y = B (A x), summed in fp32 and rounded once.

    shrunk  what `lora_shrink` left with the same tables, tiles, layer and projection
    y       [n, out], rows contiguous; the projection's output, the residual stream, or a place for the sums alone
    adds    rows of the base alone are not touched; otherwise they, and modules that an adapter leaves alone, become 0.
            Rows in no tile are never touched
    """
    check_expand(shrunk, y, tables, row_tiles, projection)
    end_0, end_1, end_2 = projection.column_ends
    record_start, slot_stride = tables.record_start(layer, projection), tables.slot_stride
    config = next(c for limit, c in CONFIGS[tile_rows] if row_tiles.shape[0] <= limit)
    num_blocks = sum(-(-width // config.block_n) for width in projection.widths)
    pdl = overlaps_launches(y)
    _expand_kernel[(num_blocks, row_tiles.shape[0])](
        y,
        shrunk,
        tables.arena,
        tables.records,
        row_tiles,
        record_start,
        slot_stride,
        y.stride(0),
        END_0=end_0,
        END_1=end_1,
        END_2=end_2,
        RANK_STRIDE=shrunk.shape[1],
        BLOCK_M=tile_rows,
        BLOCK_N=config.block_n,
        BLOCK_R=config.block_r,
        ADDS=adds,
        PDL=pdl,
        num_warps=config.num_warps,
        num_stages=1,  # the loop requests its next rows of B itself
        launch_pdl=pdl,
    )


def check_expand(
    shrunk: Tensor, y: Tensor, tables: LoraTables, row_tiles: Tensor, projection: ProjectionShape
) -> None:
    """Raises ValueError unless the operands are as `lora_expand` wants them."""
    end_2 = projection.column_ends[-1]
    require(y.ndim == 2 and y.shape[1] == end_2, f"y {tuple(y.shape)} is not [n, {end_2}]")
    require(y.stride(1) == 1, "rows of y must be contiguous")
    require(all(width % 8 == 0 for width in projection.widths), f"widths {projection.widths}: not ×8")
    require(
        shrunk.dtype == tables.arena.dtype and shrunk.is_contiguous() and shrunk.shape[0] >= y.shape[0],
        f"shrunk {tuple(shrunk.shape)} does not hold the rows of y in the dtype of the arena",
    )
    require(
        row_tiles.dtype == torch.int32 and row_tiles.is_contiguous(), "row_tiles must be contiguous int32"
    )
