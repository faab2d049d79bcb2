"""Where the weights of resident adapters lie on the device, and which rows of a step carry which adapter.

Arena: one flat buffer. Of each projection that an adapter touches it holds
    A  [sum of the modules' ranks, in]  one module below the other, `in` contiguous
    B  [rank, out] per module           scaling · Bᵀ, `out` contiguous
each starting at a multiple of 8 elements, so that every load is 16 bytes wide. Ranks are true ranks; a module that
is left alone has rank 0 and no bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from loraplex_server.kernels.triton_runtime import require

MAX_MODULES = 3  # of one projection
RECORD_FIELDS = 8
ARENA_UNIT = 8  # elements; offsets in records count these
NO_SLOT = -1  # in a row tile: the base alone

SMALL_TILE_ROWS = 16
LARGE_TILE_ROWS = 64
SMALL_TILES_UP_TO = 512
"""Rows up to which a step with prompts has small tiles; a multiple of what rows are rounded up to, so that rounding
does not change the tiles."""


def tile_rows_of(num_rows: int, *, has_prefills: bool) -> int:
    """Rows of one tile of a step: large ones for many rows of prompts alone."""
    return LARGE_TILE_ROWS if has_prefills and num_rows > SMALL_TILES_UP_TO else SMALL_TILE_ROWS


class RowTile(NamedTuple):
    """Consecutive rows of one adapter, at most as many as a kernel takes at once."""

    row_start: int
    num_rows: int
    slot: int  # NO_SLOT: the base alone


def plan_row_tiles(runs: Iterable[tuple[int, int]], tile_rows: int) -> list[RowTile]:
    """Cut runs of rows, each (slot, rows), in the order of the batch, into tiles of at most `tile_rows`.

    >>> plan_row_tiles([(7, 3), (NO_SLOT, 1)], tile_rows=2)
    [RowTile(row_start=0, num_rows=2, slot=7), RowTile(row_start=2, num_rows=1, slot=7), RowTile(row_start=3, num_rows=1, slot=-1)]
    """  # noqa: E501
    tiles = []
    row = 0
    for slot, num_rows in runs:
        for start in range(0, num_rows, tile_rows):
            tiles.append(RowTile(row + start, min(tile_rows, num_rows - start), slot))
        row += num_rows
    return tiles


def row_tile_table(tiles: list[RowTile], capacity: int) -> Tensor:
    """[capacity, 4] int32 on the host: row start, rows, slot, 0; unused entries have no rows."""
    require(len(tiles) <= capacity, f"{len(tiles)} row tiles do not fit a table of {capacity}")
    table = torch.zeros(capacity, 4, dtype=torch.int32)
    table[:, 2] = NO_SLOT
    if tiles:
        table[: len(tiles), :3] = torch.tensor(tiles, dtype=torch.int32)
    return table


@dataclass(frozen=True, slots=True)
class ProjectionShape:
    """One packed projection of the base; the same in every layer."""

    index: int  # of PROJECTIONS: qkv, o, gate_up, down
    in_features: int
    widths: tuple[int, ...]  # outputs of its modules, one to three

    @property
    def column_ends(self) -> tuple[int, int, int]:
        """Where the modules' columns end; absent modules are empty."""
        widths = (*self.widths, *(0,) * (MAX_MODULES - len(self.widths)))
        return widths[0], widths[0] + widths[1], sum(widths)


@dataclass(frozen=True, slots=True)
class LoraTables:
    """The adapters on the device. `records` are int32, of a slot, layer and projection:

    0 offset of A · 1 sum of ranks · 2..4 offsets of the modules' B · 5..7 ranks. Offsets in units of ARENA_UNIT.
    """

    arena: Tensor  # [elements]
    records: Tensor  # [slots, layers, 4, RECORD_FIELDS] int32
    host_records: Tensor  # the same on the host

    @property
    def slot_stride(self) -> int:
        """Elements of `records` per slot."""
        return self.records.shape[1] * self.records.shape[2] * RECORD_FIELDS

    def record_start(self, layer: int, projection: ProjectionShape) -> int:
        """Element of `records` where slot 0's record of this layer and projection begins."""
        return (layer * self.records.shape[2] + projection.index) * RECORD_FIELDS


def projection_record(a_offset: int, b_offsets: list[int], ranks: list[int]) -> list[int]:
    """A record; offsets in elements from the start of the arena, one rank and B per module of the projection.

    Raises ValueError where an offset is not a multiple of ARENA_UNIT.
    """
    missing = MAX_MODULES - len(ranks)
    offsets = [a_offset, *b_offsets, *(0,) * missing]
    require(all(o % ARENA_UNIT == 0 for o in offsets), f"offsets {offsets} are not multiples of {ARENA_UNIT}")
    units = [offset // ARENA_UNIT for offset in offsets]
    return [units[0], sum(ranks), *units[1:], *ranks, *(0,) * missing]
