"""The few padded shapes that steps are rounded up to, each captured as a graph before the first request."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import takewhile

from loraplex_server.engine.gpu_step_inputs import StepPlan, StepShape, aligned
from loraplex_server.kernels.decode_attention import PART_TOKENS
from loraplex_server.kernels.lora_tables import SMALL_TILE_ROWS, tile_rows_of
from loraplex_server.kernels.prefill_attention import TILE_ROWS

_FEW_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
_TILE_BUCKETS = (1, 4, 8, 16, 32, 64, 128, 256)
_SHORT_CONTEXT = 4096  # tokens; a step brings whole tables to the device, used or not
_PROMPT_ROWS = 32  # that a full batch of decodes still takes along
_MIXED_ROW_BUCKETS = (32, 64, 128, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048)


class ShapeBuckets:
    """Those of decode steps.

    `max_rows` is the most that one of them holds: a decode of every running sequence, and some rows of prompts unless
    the step itself is smaller. `contexts` are the limits of their contexts.
    """

    def __init__(self, max_rows: int, max_running: int, max_context: int, block_size: int) -> None:
        """`max_rows` of any step."""
        self.max_rows = min(max_running + _PROMPT_ROWS, max_rows)
        fewer = takewhile(lambda rows: rows < self.max_rows, _row_buckets())
        self._rows = sorted({*fewer, max_running, self.max_rows})
        self.contexts = _context_buckets(max_context)
        self._block_size = block_size

    def all_shapes(self) -> Iterator[StepShape]:
        """Largest first: what later graphs need is allocated by then."""
        for rows in reversed(self._rows):
            for max_context in reversed(self.contexts):
                for tiles in reversed(self._tiles(rows)):
                    yield self._shape(rows, max_context, tiles)

    def shape_of(self, plan: StepPlan) -> StepShape:
        """The smallest shape that holds a plan of decode rows alone."""
        rows = _least(self._rows, plan.num_rows)
        return self._shape(rows, self.context_of(plan), _least(self._tiles(rows), len(plan.row_tiles)))

    def padded_rows(self, rows: int) -> int:
        """Rows of the smallest of them that holds so many; of more than that any step's own."""
        return _least(self._rows, rows) if rows <= self.max_rows else rows

    def context_of(self, plan: StepPlan) -> int:
        """The bucket of a plan's decode contexts."""
        return _least(self.contexts, plan.max_context)

    def _tiles(self, rows: int) -> list[int]:
        """Numbers of row tiles of a step with so many rows; 0 is the base alone."""
        fewest = -(-rows // SMALL_TILE_ROWS)
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
    """Those of steps with prefills, of up to `max_rows` rows, the first of which have a place for a context."""

    def __init__(self, max_rows: int, max_running: int, max_context: int, block_size: int) -> None:
        self.max_rows = min(max_rows, _MIXED_ROW_BUCKETS[-1])
        self._rows = [*takewhile(lambda rows: rows < self.max_rows, _MIXED_ROW_BUCKETS), self.max_rows]
        self._max_running = max_running
        self._contexts = _context_buckets(max_context)
        self._max_blocks = aligned(-(-max_context // block_size))

    def all_shapes(self) -> Iterator[StepShape]:
        """Largest first."""
        for rows in reversed(self._rows):
            for max_context in reversed(self._contexts):
                for has_adapters in (True, False):
                    yield self._shape(rows, max_context, has_adapters)

    def shape_of(self, plan: StepPlan) -> StepShape | None:
        """The smallest shape that holds a plan with prefills; None if there is none."""
        if plan.num_rows > self.max_rows:
            return None
        rows, context = _least(self._rows, plan.num_rows), _least(self._contexts, plan.max_context)
        return self._shape(rows, context, bool(plan.row_tiles))

    def _shape(self, rows: int, max_context: int, has_adapters: bool) -> StepShape:
        sequences = min(rows, self._max_running)
        full_tiles = rows // tile_rows_of(rows, has_prefills=True)
        return StepShape(
            rows=rows,
            decodes=sequences,
            sequences=sequences,
            row_tiles=min(rows, sequences + full_tiles) if has_adapters else 0,
            query_tiles=min(rows, sequences + rows // TILE_ROWS),
            max_context=max_context,
            max_blocks=self._max_blocks,
            logit_rows=sequences,
        )


class GraphShapes:
    """All of them. Their number depends on the rows and the context of a step, not on how many adapters there are."""

    def __init__(self, *, max_rows: int, max_running: int, max_context: int, block_size: int) -> None:
        """`max_rows` of any step."""
        self.max_rows = max_rows
        self.max_running = max_running
        self.max_context = max_context
        self.block_size = block_size
        self.decodes = ShapeBuckets(max_rows, max_running, max_context, block_size)
        self.mixed = MixedShapes(max_rows, max_running, max_context, block_size)

    def all_shapes(self) -> list[StepShape]:
        """Of both kinds, largest first."""
        return [*self.mixed.all_shapes(), *self.decodes.all_shapes()]

    def shape_of(self, plan: StepPlan) -> StepShape | None:
        """The smallest shape that holds a plan; None for prefills too long for any."""
        return self.mixed.shape_of(plan) if plan.prefills else self.decodes.shape_of(plan)


def _row_buckets() -> Iterator[int]:
    """Numbers of decodes that have shapes of their own, ascending without end.

    From 128 rows on there are four for each doubling, which pad a step by less than a quarter: there products are
    bound by arithmetic, so that a row of padding costs what any row does. Below there are fewer, since products take
    33 rows as long as 64, 65 as long as 96 and 97 as long as 128.
    """
    yield from _FEW_ROWS
    doubled = _FEW_ROWS[-1]
    while True:
        yield from (doubled * quarters // 4 for quarters in (5, 6, 7, 8))
        doubled *= 2


def _least(sizes: list[int], needed: int) -> int:
    """The smallest of ascending `sizes` that holds what is needed."""
    return sizes[bisect_left(sizes, needed)]


def _context_buckets(max_context: int) -> list[int]:
    """One part of attention, which is then a single launch; contexts whose tables of blocks are short; any."""
    return sorted({min(PART_TOKENS, max_context), min(_SHORT_CONTEXT, max_context), max_context})
