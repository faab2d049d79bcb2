"""LoRA over segments of rows: shrink and expand with each adapter's true rank, straight from the arena.

The plain-torch version below is the reference and the CPU path. A module that an adapter leaves alone costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraPart:
    """One module inside a packed projection."""

    column_start: int  # of the projection's output
    column_stop: int
    rank_start: int  # of the shrunk rows
    rank_stop: int
    b: Tensor  # [rank, out] = scaling · Bᵀ


@dataclass(frozen=True, slots=True)
class LoraProjection:
    """One adapter's weights for one packed projection of one layer: views into the arena."""

    a: Tensor  # [in, sum of ranks]: Aᵀ of the modules side by side
    parts: tuple[LoraPart, ...]


class LoraLayers(list[dict[str, LoraProjection]]):
    """Per layer: projection name -> weights; a projection that the adapter leaves alone is absent."""

    records: Any = None  # what kernels derive from the weights, kept as long as they are


@dataclass(frozen=True, slots=True)
class LoraSegment:
    """Consecutive rows of one adapter."""

    row_start: int
    row_stop: int
    layers: LoraLayers


class SegmentedLora:
    """The adapters of one forward pass in plain torch. Implements `loraplex_server.model.batch.LoraBatch`."""

    def __init__(self, segments: list[LoraSegment]) -> None:
        self._segments = segments

    def add(self, layer: int, projection: str, x: Tensor, y: Tensor) -> None:
        """y[rows] += B (A x[rows]) for each segment, in place; x [n, in], y [n, out]."""
        for segment in self._segments:
            weights = segment.layers[layer].get(projection)
            if weights is not None:
                lora_segment(
                    x[segment.row_start : segment.row_stop], y[segment.row_start : segment.row_stop], weights
                )


def lora_segment(x: Tensor, y: Tensor, weights: LoraProjection) -> None:
    """y += B (A x) for rows of one adapter, in place; x [m, in], y [m, out]."""
    shrunk = x @ weights.a
    parts = weights.parts
    if len(parts) == 1 and parts[0].column_stop - parts[0].column_start == y.shape[1]:
        y.addmm_(shrunk, parts[0].b)
        return
    for part in parts:
        y[:, part.column_start : part.column_stop].addmm_(shrunk[:, part.rank_start : part.rank_stop], part.b)
