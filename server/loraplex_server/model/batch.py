"""What one forward pass reads besides weights: tokens, where their keys and values live, and whose LoRA they carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Consecutive tokens of one sequence among the rows of a batch."""

    row_start: int  # first row in the batch
    row_stop: int
    context_start: int  # position of the first row in its sequence
    block_ids: Tensor  # [ceil((context_start + rows) / block_size)] int64, the sequence's blocks in order


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The first `count` rows of a batch: one token each of as many sequences."""

    count: int
    block_tables: Tensor  # [count, max_blocks] int64; entries past a sequence's blocks are any valid block
    context_lengths: Tensor  # [count] int64, positions to attend to, the row's own included
    max_context: int  # largest of context_lengths, known to the host


class LoraBatch(Protocol):
    """The adapters of a batch. Rows that carry none are left as they are."""

    def add(self, layer: int, projection: str, x: Tensor, y: Tensor) -> None:
        """y += scaling · B (A x) for each row of its adapter.

        x [n, in] is the projection's input, y [n, out] its output, changed in place; `projection` is a name of
        `loraplex_server.model.projections.PROJECTIONS`.
        """
        ...


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Rows of one forward pass: decode rows first, then the prefill chunks in order."""

    token_ids: Tensor  # [n] int64
    positions: Tensor  # [n] int64
    kv_slots: Tensor  # [n] int64: block * block_size + offset, where each row's key and value are written
    decode: DecodeRows
    prefills: list[PrefillChunk]
    logit_rows: Tensor | None  # [m] int64 rows whose logits are wanted; None: all
    lora: LoraBatch | None
