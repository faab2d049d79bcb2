"""Runs a decoder over whole sequences in chosen portions, with a paged cache whose blocks are shuffled."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from loraplex_server.engine.kv_cache import allocate_kv_cache
from loraplex_server.kernels.lora import LoraLayers, LoraSegment, SegmentedLora
from loraplex_server.model.batch import DecodeRows, ForwardBatch, LoraBatch, PrefillChunk
from loraplex_server.model.decoder import Decoder


@dataclass
class PagedRun:
    """Feeds tokens of several sequences to a decoder, one packed batch at a time."""

    decoder: Decoder
    num_sequences: int
    max_length: int
    block_size: int = 4
    kv_dtype: torch.dtype = torch.float32
    lora: LoraBatch | None = None
    lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        per_sequence = -(-self.max_length // self.block_size)
        order = torch.randperm(per_sequence * self.num_sequences, generator=torch.Generator().manual_seed(1))
        self.tables = order.view(self.num_sequences, per_sequence)
        self.lengths = [0] * self.num_sequences
        self.cache = allocate_kv_cache(
            self.decoder.config, order.numel(), self.block_size, self.kv_dtype, torch.device("cpu")
        )

    @torch.inference_mode()
    def feed(self, portions: dict[int, list[int]]) -> dict[int, Tensor]:
        """Append `portions[sequence]` tokens; returns logits [tokens, vocab] of each sequence fed.

        Single tokens of sequences that have some already go as decode rows, everything else as prefill chunks.
        """
        decodes = [s for s, tokens in portions.items() if len(tokens) == 1 and self.lengths[s] > 0]
        prefills = [s for s in portions if s not in decodes]
        order = decodes + prefills
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        chunks: list[PrefillChunk] = []
        row = 0
        for sequence in order:
            start, count = self.lengths[sequence], len(portions[sequence])
            places = range(start, start + count)
            token_ids += portions[sequence]
            positions += places
            slots += [self._slot(sequence, position) for position in places]
            if sequence in prefills:
                blocks = self.tables[sequence][: -(-(start + count) // self.block_size)]
                chunks.append(PrefillChunk(row, row + count, start, blocks))
            row += count
            self.lengths[sequence] += count
        lengths = [self.lengths[s] for s in decodes]
        batch = ForwardBatch(
            token_ids=torch.tensor(token_ids),
            positions=torch.tensor(positions),
            kv_slots=torch.tensor(slots),
            decode=DecodeRows(
                len(decodes), self.tables[decodes], torch.tensor(lengths), max(lengths, default=0)
            ),
            prefills=chunks,
            logit_rows=None,
            lora=self.lora,
        )
        logits = self.decoder.forward(batch, self.cache)
        split = torch.split(logits, [len(portions[s]) for s in order])
        return dict(zip(order, split, strict=True))

    def _slot(self, sequence: int, position: int) -> int:
        block = int(self.tables[sequence][position // self.block_size])
        return block * self.block_size + position % self.block_size


def lora_of_rows(portions: list[tuple[int, LoraLayers | None]]) -> SegmentedLora:
    """Adapters of consecutive portions of a batch's rows: (number of rows, weights); None for the base."""
    segments, row = [], 0
    for num_rows, layers in portions:
        if layers is not None:
            segments.append(LoraSegment(row, row + num_rows, layers))
        row += num_rows
    return SegmentedLora(segments)
