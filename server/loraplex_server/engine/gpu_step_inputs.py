"""Writes a scheduled batch into staging: the rows, pages, tiles and sampling parameters that the kernels read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from loraplex_server.engine.scheduled_batch import ScheduledBatch, ScheduledSequence
from loraplex_server.engine.sequence import BASE_SLOT
from loraplex_server.engine.staging import Staging, StagingLayout
from loraplex_server.kernels.lora_dense import DENSE_ROWS
from loraplex_server.kernels.lora_tables import (
    NO_SLOT,
    LoraTables,
    RowTile,
    plan_row_tiles,
    tile_rows_of,
)
from loraplex_server.kernels.prefill_attention import QueryTile, plan_query_tiles
from loraplex_server.kernels.sampling import RowSampling
from loraplex_server.model.gpu_batch import GpuBatch, GpuLoraBatch

_SIGN_BIT = 1 << 63
ALIGNMENT = 16
"""Rows of a prefill and blocks of a table are rounded up to it: Triton compiles a kernel anew for an odd size."""


def aligned(size: int) -> int:
    """`size` rounded up."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class StepShape:
    """Sizes that decide which kernels are launched and how; equal shapes can share a captured graph."""

    rows: int
    decodes: int  # rows that may decode, the first ones
    sequences: int
    row_tiles: int  # 0: no adapter in the batch
    query_tiles: int  # 0: decodes alone
    max_context: int  # of the decodes
    max_blocks: int  # of a sequence
    logit_rows: int | None  # None: every row's logits
    sole_slot: int | None = None  # of all rows of a long prefill

    @property
    def tile_rows(self) -> int:
        """Rows of one tile of an adapter."""
        return tile_rows_of(self.rows, has_prefills=self.query_tiles > 0)

    def layout(self) -> StagingLayout:
        """Its inputs in staging."""
        sampled = self.rows if self.logit_rows is None else self.logit_rows
        fields: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "token_ids": ((self.rows,), torch.int32),
            "positions": ((self.rows,), torch.int32),
            "kv_slots": ((self.rows,), torch.int32),
            "block_tables": ((self.sequences, self.max_blocks), torch.int32),
            "context_lengths": ((self.decodes,), torch.int32),
            "row_tiles": ((self.row_tiles, 4), torch.int32),
            "query_tiles": ((self.query_tiles, 4), torch.int32),
            "logit_rows": ((0 if self.logit_rows is None else self.logit_rows,), torch.int64),
            "temperature": ((sampled,), torch.float32),
            "top_k": ((sampled,), torch.int32),
            "top_p": ((sampled,), torch.float32),
            "min_p": ((sampled,), torch.float32),
            "seed": ((sampled,), torch.int64),
            "index": ((sampled,), torch.int64),
        }
        return StagingLayout(fields)


class StepInputs:
    """The device tensors of one shape, all views of the staging buffer."""

    def __init__(self, shape: StepShape, staging: Staging, tables: LoraTables | None) -> None:
        self.shape = shape
        self._staging = staging
        self._layout = shape.layout()
        views = self._layout.device_views(staging.device_buffer)
        lora = None
        if shape.row_tiles:
            assert tables is not None
            lora = GpuLoraBatch(tables, views["row_tiles"], shape.tile_rows, shape.sole_slot)
        self.batch = GpuBatch(
            token_ids=views["token_ids"],
            positions=views["positions"],
            kv_slots=views["kv_slots"],
            num_decodes=shape.decodes,
            block_tables=views["block_tables"],
            context_lengths=views["context_lengths"],
            max_context=shape.max_context,
            query_tiles=views["query_tiles"] if shape.query_tiles else None,
            logit_rows=None if shape.logit_rows is None else views["logit_rows"],
            lora=lora,
        )
        self.sampling = RowSampling(
            *(views[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed", "index"))
        )

    def write(self, plan: StepPlan, newest_row_of: dict[int, int]) -> None:
        """Fill a host buffer and bring it to the device.

        newest_row_of  sequence id -> its row among those that the step before sampled; its token is not known here
        """
        buffer = self._staging.begin()
        buffer[: self._layout.nbytes] = 0
        views = self._layout.host_views(buffer)
        views["kv_slots"][:] = -1
        views["row_tiles"][:, 2] = NO_SLOT
        token_ids, positions, kv_slots = plan.rows(newest_row_of)
        for name, values in (("token_ids", token_ids), ("positions", positions), ("kv_slots", kv_slots)):
            views[name][: len(values)] = values
        for row, table in enumerate(plan.block_tables()):
            views["block_tables"][row, : len(table)] = table
        if self.shape.decodes:
            views["context_lengths"][: len(plan.decodes)] = [row.stop for row in plan.decodes]
        for name, tiles in (("row_tiles", plan.row_tiles), ("query_tiles", plan.query_tiles)):
            if tiles:
                views[name][: len(tiles), : len(tiles[0])] = tiles
        if self.shape.logit_rows is not None:
            views["logit_rows"][: len(plan.logit_rows)] = plan.logit_rows
        self._write_sampling(plan.sampled, views)
        self._staging.upload(self._layout.nbytes)

    def _write_sampling(self, rows: list[ScheduledSequence], views: dict[str, Any]) -> None:
        if all(row.sequence.sampling.temperature == 0 for row in rows):
            return
        parameters = [row.sequence.sampling for row in rows]
        for name in ("temperature", "top_k", "top_p", "min_p"):
            views[name][: len(rows)] = [getattr(sampling, name) for sampling in parameters]
        seeds = [sampling.seed for sampling in parameters]
        views["seed"][: len(rows)] = [seed - 2 * _SIGN_BIT if seed >= _SIGN_BIT else seed for seed in seeds]
        views["index"][: len(rows)] = [row.output_index for row in rows]


class StepPlan:
    """A scheduled batch cut into what kernels take at once.

    Its decodes may be single rows of prompts too (see `single_rows`): then `sampled` are the first of them.
    """

    def __init__(self, batch: ScheduledBatch, block_size: int) -> None:
        self.decodes = batch.decodes
        self.prefills = batch.prefills
        self._block_size = block_size
        self.sampled = [row for row in self._all_rows() if row.is_last_chunk]
        self.num_rows = batch.num_tokens
        self.row_tiles = self._plan_row_tiles() if batch.adapter_slots else []
        self.max_context = max((row.stop for row in self.decodes), default=1)
        self.max_stop = max(row.stop for row in self._all_rows())

    @property
    def query_tiles(self) -> list[QueryTile]:
        """Of the prefills."""
        return plan_query_tiles(self._chunks())

    @property
    def sole_slot(self) -> int | None:
        """The adapter slot of all rows, where they are many enough for plain products."""
        slots = {tile.slot for tile in self.row_tiles}
        is_sole = len(slots) == 1 and NO_SLOT not in slots and self.num_rows >= DENSE_ROWS
        return slots.pop() if is_sole else None

    @property
    def is_greedy(self) -> bool:
        return all(row.sequence.sampling.temperature == 0 for row in self.sampled)

    @property
    def logit_rows(self) -> list[int]:
        """Rows of the batch whose logits are wanted."""
        wanted = []
        stop = 0
        for row in self._all_rows():
            stop += row.num_tokens
            if row.is_last_chunk:
                wanted.append(stop - 1)
        return wanted

    def rows(self, newest_row_of: dict[int, int]) -> tuple[list[int], list[int], list[int]]:
        """Token, position and KV slot of each row."""
        token_ids: list[int] = []
        positions: list[int] = []
        kv_slots: list[int] = []
        size = self._block_size
        for row in self._all_rows():
            known = row.sequence.token_ids(row.start, row.stop)
            token_ids += known
            if len(known) < row.num_tokens:
                token_ids.append(-1 - newest_row_of[row.sequence.sequence_id])
            positions += range(row.start, row.stop)
            table = row.sequence.block_table
            kv_slots += [table[p // size] * size + p % size for p in range(row.start, row.stop)]
        return token_ids, positions, kv_slots

    def block_tables(self) -> Iterator[list[int]]:
        """Of each sequence, in the order of the batch, as far as its context reaches."""
        for row in self._all_rows():
            yield row.sequence.block_table[: -(-row.stop // self._block_size)]

    def _all_rows(self) -> list[ScheduledSequence]:
        return [*self.decodes, *self.prefills]

    def _plan_row_tiles(self) -> list[RowTile]:
        tile_rows = tile_rows_of(self.num_rows, has_prefills=bool(self.prefills))
        runs = []
        for slot, rows in groupby(self._all_rows(), key=lambda row: row.sequence.adapter_slot):
            runs.append((NO_SLOT if slot == BASE_SLOT else slot, sum(row.num_tokens for row in rows)))
        return plan_row_tiles(runs, tile_rows)

    def _chunks(self) -> Iterator[tuple[int, int, int, int]]:
        row_start = len(self.decodes)
        for index, row in enumerate(self.prefills, start=len(self.decodes)):
            yield row_start, row.num_tokens, row.start, index
            row_start += row.num_tokens
