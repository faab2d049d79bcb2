"""Both of LoRA's products for rows that all carry one adapter, as plain matrix products straight from the arena.

For a long prompt of one tenant, where they are as fast as the segmented kernels and need no row tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_server.kernels.lora_tables import ARENA_UNIT, LoraTables, ProjectionShape

DENSE_ROWS = 256
"""Rows of one adapter from which on this is used; below, launches outweigh the products."""


def lora_dense(
    x: Tensor,
    y: Tensor,
    tables: LoraTables,
    slot: int,
    layer: int,
    projection: ProjectionShape,
    scratch: Tensor,
) -> None:
    """y [n, out] += B (A x) in place, with x [n, in] in the arena's dtype.

    scratch  at least n · sum of the adapter's ranks elements of that dtype, contiguous
    """
    a_unit, total_rank, *rest = tables.host_records[slot, layer, projection.index].tolist()
    if total_rank == 0:
        return
    a = tables.arena[a_unit * ARENA_UNIT :][: total_rank * projection.in_features].view(total_rank, -1)
    shrunk = scratch.view(-1)[: x.shape[0] * total_rank].view(x.shape[0], total_rank)
    torch.mm(x, a.t(), out=shrunk)
    column, rank_start = 0, 0
    for width, b_unit, rank in zip(projection.widths, rest[:3], rest[3:], strict=False):
        if rank > 0:
            b = tables.arena[b_unit * ARENA_UNIT :][: rank * width].view(rank, width)
            y[:, column : column + width].addmm_(shrunk[:, rank_start : rank_start + rank], b)
        column, rank_start = column + width, rank_start + rank
