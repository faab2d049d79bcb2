"""The tensors behind the KV blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_server.model.config import DecoderConfig


def block_bytes(config: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes that one block takes over all layers."""
    return config.num_layers * block_size * 2 * config.num_kv_heads * config.head_dim * dtype.itemsize


def allocate_kv_cache(
    config: DecoderConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """One tensor per layer: [num_blocks, block_size, 2 · kv_heads · head_dim], keys then values.

    Zeroed: positions past a sequence's end are read under a mask, and NaN times zero is NaN.
    """
    shape = (num_blocks, block_size, 2 * config.num_kv_heads * config.head_dim)
    return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
