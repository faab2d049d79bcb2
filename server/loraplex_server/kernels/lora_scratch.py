"""What the blocks of LoRA's kernels hand to one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.lora_tables import SMALL_TILE_ROWS

LARGE_TILE_SPLITS = 4
LARGE_TILE_RANKS = 64  # of one program, at most
_SMALL_TILE_RANK_GROUPS = 8  # of the Triton kernel for small row tiles, at most; each takes ranks in turns


def small_tile_part(in_features: int) -> int:
    """Length of one part of the sum over `in` in the Triton kernel for small row tiles."""
    return 256 if in_features <= 8192 else 512


def num_splits(in_features: int, tile_rows: int) -> int:
    """Partial sums, at most, that a shrink with these row tiles leaves behind."""
    if tile_rows == SMALL_TILE_ROWS:
        return -(-in_features // small_tile_part(in_features))
    return LARGE_TILE_SPLITS


def max_rank_groups(rank_stride: int) -> int:
    """Programs, at most, that share the ranks of one row tile; each of them counts by itself who is last."""
    return max(_SMALL_TILE_RANK_GROUPS, -(-rank_stride // LARGE_TILE_RANKS))


@dataclass(frozen=True, slots=True)
class LoraScratch:
    """Launches in one stream may share it."""

    parts: Tensor  # [elements] fp32
    counters: Tensor  # [row tiles · max_rank_groups] int32; all zero before and after a launch
    plan: Tensor  # [plan_ints] int32, of the step under way

    @classmethod
    def allocate(
        cls, num_parts: int, num_counters: int, num_plan_ints: int, device: torch.device
    ) -> LoraScratch:
        """Scratch for launches whose splits · rows · rank_stride, counters and plans are at most these."""
        return cls(
            torch.empty(num_parts, dtype=torch.float32, device=device),
            torch.zeros(num_counters, dtype=torch.int32, device=device),
            torch.empty(num_plan_ints, dtype=torch.int32, device=device),
        )
