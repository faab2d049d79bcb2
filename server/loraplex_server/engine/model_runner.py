"""Runs a scheduled batch: builds the forward pass's inputs on the host, runs the decoder, samples."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.engine.adapter_arena import AdapterArena
from loraplex_server.engine.sampler import Sampler
from loraplex_server.engine.scheduled_batch import SampledToken, ScheduledBatch, ScheduledSequence
from loraplex_server.engine.sequence import BASE_SLOT
from loraplex_server.kernels.lora import LoraSegment
from loraplex_server.model.batch import DecodeRows, ForwardBatch, LoraBatch, PrefillChunk
from loraplex_server.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step that was over when it was launched: on a CPU nothing runs ahead."""

    sampled: list[SampledToken]
    device_seconds: float
    idle_seconds: None = None

    is_over = True

    def tokens(self) -> list[SampledToken]:
        return self.sampled


class ModelRunner:
    """ScheduledBatch -> sampled tokens. Owns the KV tensors; takes no locks."""

    overlaps = False

    def __init__(
        self,
        decoder: Decoder,
        kv_cache: list[Tensor],
        arena: AdapterArena,
        sampler: Sampler,
        device: torch.device,
    ) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._block_size = kv_cache[0].shape[1]
        self._arena = arena
        self._sampler = sampler
        self._device = device

    def warm_up(self, on_progress: Callable[[int, int], None]) -> None:
        """Nothing is compiled on a CPU."""

    def launch(self, batch: ScheduledBatch, *, is_continuation: bool = False) -> FinishedStep:
        """Run a step."""
        started = time.monotonic()
        sampled = self.run(batch)
        return FinishedStep(sampled, time.monotonic() - started)

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch) -> list[SampledToken]:
        """One forward pass; a token for each decode row and then for each prefill that reached its last chunk."""
        logits = self._decoder.forward(self._forward_batch(batch), self._kv_cache)
        sampling = [*batch.decodes, *(row for row in batch.prefills if row.is_last_chunk)]
        if not sampling:
            return []
        return self._sampler(logits, [row.sequence for row in sampling])

    def _forward_batch(self, batch: ScheduledBatch) -> ForwardBatch:
        token_ids: list[int] = []
        positions: list[int] = []
        kv_slots: list[int] = []
        for row in (*batch.decodes, *batch.prefills):
            token_ids += row.sequence.token_ids(row.start, row.start + row.num_tokens)
            positions += range(row.start, row.start + row.num_tokens)
            kv_slots += self._kv_slots(row)
        chunks, logit_rows = self._prefill_chunks(batch)
        return ForwardBatch(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(positions),
            kv_slots=self._tensor(kv_slots),
            decode=self._decode_rows(batch.decodes),
            prefills=chunks,
            logit_rows=self._tensor(logit_rows) if chunks else None,
            lora=self._lora(batch),
        )

    def _kv_slots(self, row: ScheduledSequence) -> list[int]:
        size, table = self._block_size, row.sequence.block_table
        return [
            table[position // size] * size + position % size
            for position in range(row.start, row.start + row.num_tokens)
        ]

    def _decode_rows(self, decodes: list[ScheduledSequence]) -> DecodeRows:
        """Block tables are padded with block 0, which the attention's mask hides."""
        lengths = [row.start + 1 for row in decodes]
        max_context = max(lengths, default=0)
        width = -(-max_context // self._block_size)
        tables = [row.sequence.block_table[:width] for row in decodes]
        padded = [table + [0] * (width - len(table)) for table in tables]
        return DecodeRows(
            count=len(decodes),
            block_tables=self._tensor(padded),
            context_lengths=self._tensor(lengths),
            max_context=max_context,
        )

    def _prefill_chunks(self, batch: ScheduledBatch) -> tuple[list[PrefillChunk], list[int]]:
        """The chunks, and the rows of the batch whose logits are wanted."""
        chunks = []
        logit_rows = list(range(len(batch.decodes)))
        row_start = len(batch.decodes)
        for row in batch.prefills:
            row_stop = row_start + row.num_tokens
            num_blocks = -(-(row.start + row.num_tokens) // self._block_size)
            blocks = self._tensor(row.sequence.block_table[:num_blocks])
            chunks.append(PrefillChunk(row_start, row_stop, row.start, blocks))
            if row.is_last_chunk:
                logit_rows.append(row_stop - 1)
            row_start = row_stop
        return chunks, logit_rows

    def _lora(self, batch: ScheduledBatch) -> LoraBatch | None:
        """Runs of rows with one adapter, decode rows apart from prefill chunks; None for a batch of the base alone."""
        segments: list[LoraSegment] = []
        row_start = 0
        for rows in (batch.decodes, batch.prefills):
            for slot, run in itertools.groupby(rows, key=lambda row: row.sequence.adapter_slot):
                row_stop = row_start + sum(row.num_tokens for row in run)
                if slot != BASE_SLOT:
                    segments.append(LoraSegment(row_start, row_stop, self._arena.layers_of_slot(slot)))
                row_start = row_stop
        return self._decoder.ops.lora_batch(segments, len(batch.decodes)) if segments else None

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
