"""What one forward pass reads besides weights: tokens, where their keys and values live, and whose LoRA they carry."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from loraplex_server.kernels.lora import LoraBatch
from loraplex_server.kernels.paged_attention import DecodeRows, PrefillChunk


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
