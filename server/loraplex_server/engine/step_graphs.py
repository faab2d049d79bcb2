"""Steps as CUDA graphs: one per padded size, all captured before the first request.

Launching a pass kernel by kernel takes the host longer than the device needs for a few hundred rows, so steps with
short prefills have graphs as well as those of decodes alone: the shortest those of decodes (see `single_rows`). Only a
prefill of thousands of rows goes without.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from loraplex_server.engine.gpu_step_inputs import StepInputs, StepPlan, StepShape, aligned
from loraplex_server.kernels.decode_attention import PART_TOKENS
from loraplex_server.kernels.lora_tables import DECODE_TILE_ROWS, PREFILL_TILE_ROWS
from loraplex_server.kernels.prefill_attention import TILE_ROWS

_ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
_TILE_BUCKETS = (1, 4, 8, 16, 32, 64, 128, 256)
_CONTEXT_FACTOR = 4  # between two buckets of context
_PROMPT_ROWS = 32  # that a full batch of decodes still takes along
_MIXED_ROW_BUCKETS = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)

Forward = Callable[[StepInputs], Tensor]
"""Launches one pass and returns its logits."""


class ShapeBuckets:
    """The few padded shapes that decode steps are rounded up to.

    `max_rows` is the most that one of them holds: a decode of every running sequence, and some rows of prompts unless
    the step itself is smaller. `contexts` are the limits of their contexts.
    """

    def __init__(
        self, max_rows: int, max_running: int, max_context: int, block_size: int, *, with_adapters: bool
    ) -> None:
        """`max_rows` of any step."""
        self.max_rows = min(max_running + _PROMPT_ROWS, max_rows)
        fewer = (rows for rows in _ROW_BUCKETS if rows < self.max_rows)
        self._rows = sorted({*fewer, max_running, self.max_rows})
        self.contexts = _context_buckets(max_context)
        self._block_size = block_size
        self._with_adapters = with_adapters

    def all_shapes(self) -> Iterator[StepShape]:
        """Largest first: what later graphs need is allocated by then."""
        for rows in reversed(self._rows):
            for max_context in reversed(self.contexts):
                for tiles in reversed(self._tiles(rows)):
                    yield self._shape(rows, max_context, tiles)

    def shape_of(self, plan: StepPlan) -> StepShape:
        """The smallest shape that holds a plan of decode rows alone."""
        rows = self._rows[bisect_left(self._rows, plan.num_rows)]
        tiles = self._tiles(rows)
        return self._shape(rows, self.context_of(plan), tiles[bisect_left(tiles, len(plan.row_tiles))])

    def context_of(self, plan: StepPlan) -> int:
        """The bucket of a plan's decode contexts."""
        return self.contexts[bisect_left(self.contexts, plan.max_context)]

    def _tiles(self, rows: int) -> list[int]:
        """Numbers of row tiles of a step with so many rows; 0 is the base alone."""
        if not self._with_adapters:
            return [0]
        fewest = -(-rows // DECODE_TILE_ROWS)
        # Each row an adapter of its own is the most there can be.
        between = [tiles for tiles in _TILE_BUCKETS if fewest < tiles < rows]
        return sorted({0, fewest, *between, rows})

    def _shape(self, rows: int, max_context: int, tiles: int) -> StepShape:
        return StepShape(
            rows=rows,
            decodes=rows,
            sequences=rows,
            row_tiles=tiles,
            query_tiles=0,
            max_context=max_context,
            max_blocks=aligned(-(-max_context // self._block_size)),
            logit_rows=None,
        )


class MixedShapes:
    """The padded shapes of steps with short prefills, in which a decode is a chunk of one row."""

    def __init__(self, max_rows: int, max_running: int, max_context: int, block_size: int) -> None:
        self._rows = [rows for rows in _MIXED_ROW_BUCKETS if rows <= max_rows]
        self._max_running = max_running
        self._max_context = max_context
        self._max_blocks = aligned(-(-max_context // block_size))

    def all_shapes(self) -> Iterator[StepShape]:
        """Largest first."""
        for rows in reversed(self._rows):
            for has_adapters in (True, False):
                yield self._shape(rows, has_adapters)

    def shape_of(self, plan: StepPlan) -> StepShape | None:
        """The smallest shape that holds a plan with prefills; None if there is none."""
        index = bisect_left(self._rows, plan.num_rows)
        if index == len(self._rows):
            return None
        return self._shape(self._rows[index], bool(plan.row_tiles))

    def _shape(self, rows: int, has_adapters: bool) -> StepShape:
        sequences = min(rows, self._max_running)
        return StepShape(
            rows=rows,
            decodes=0,
            sequences=sequences,
            row_tiles=min(rows, sequences + rows // PREFILL_TILE_ROWS) if has_adapters else 0,
            query_tiles=min(rows, sequences + rows // TILE_ROWS),
            max_context=self._max_context,
            max_blocks=self._max_blocks,
            logit_rows=sequences,
        )


class StepGraphs:
    """Captured graphs by shape; all share one pool of memory, since only one runs at a time."""

    def __init__(self) -> None:
        self._graphs: dict[StepShape, tuple[torch.cuda.CUDAGraph, StepInputs, Tensor]] = {}
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, inputs: StepInputs, forward: Forward) -> None:
        """Run once, so that every kernel is compiled, then capture."""
        forward(inputs)
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = forward(inputs)
        self._pool = self._pool or graph.pool()
        self._graphs[inputs.shape] = (graph, inputs, logits)

    def inputs(self, shape: StepShape) -> StepInputs:
        """Where a step of this shape is written before `replay`."""
        return self._graphs[shape][1]

    def replay(self, shape: StepShape) -> Tensor:
        """Logits of the shape's rows, padding included."""
        graph, _, logits = self._graphs[shape]
        graph.replay()
        return logits


def _context_buckets(max_context: int) -> list[int]:
    buckets = []
    bucket = PART_TOKENS
    while bucket < max_context:
        buckets.append(bucket)
        bucket *= _CONTEXT_FACTOR
    return [*buckets, max_context]
