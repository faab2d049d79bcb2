"""Causal attention of packed rows over a paged key-value cache, grouped queries and sliding windows included.

Reference in plain torch, which is also the CPU path: decode rows are one batched product over their gathered blocks,
a prefill chunk is one product over its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from loraplex_server.model.batch import DecodeRows, PrefillChunk


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Heads of one layer. `sliding_window` counts the positions a row sees, its own included; None sees all."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int | None


def paged_attention(
    queries: Tensor,
    cache: Tensor,
    decode: DecodeRows,
    prefills: list[PrefillChunk],
    shape: AttentionShape,
) -> Tensor:
    """Attention output [n, num_heads · head_dim] in the dtype of `queries`.

    queries  [n, num_heads, head_dim]; the decode rows first, then the chunks in order
    cache    [num_blocks, block_size, 2 · num_kv_heads · head_dim]; keys, then values; the rows' own are written
    """
    out = queries.new_empty(queries.shape[0], shape.num_heads * shape.head_dim)
    if decode.count:
        out[: decode.count] = _decode_attention(queries[: decode.count], cache, decode, shape)
    prefill_attention(queries, cache, prefills, shape, out)
    return out


def prefill_attention(
    queries: Tensor, cache: Tensor, prefills: list[PrefillChunk], shape: AttentionShape, out: Tensor
) -> None:
    """As `paged_attention`, into `out`, for the rows of the chunks alone."""
    for chunk in prefills:
        rows = slice(chunk.row_start, chunk.row_stop)
        out[rows] = _chunk_attention(queries[rows], cache, chunk, shape)


def _decode_attention(queries: Tensor, cache: Tensor, decode: DecodeRows, shape: AttentionShape) -> Tensor:
    """One query row per sequence: [count, num_heads, head_dim] -> [count, num_heads · head_dim]."""
    block_size = cache.shape[1]
    num_blocks = -(-decode.max_context // block_size)
    tables = decode.block_tables[:, :num_blocks]
    positions = torch.arange(num_blocks * block_size, device=queries.device)
    lengths = decode.context_lengths.unsqueeze(1)
    visible = positions < lengths
    beyond = (~visible).flatten().nonzero().squeeze(1)
    gathered = cache.index_select(0, tables.reshape(-1)).flatten(0, 1)
    # Beyond its context lies what earlier holders of a block left there. What is masked is multiplied by zero all the
    # same, and a zero times what is no number is none.
    gathered.index_fill_(0, beyond, 0)
    keys, values = _keys_and_values(gathered, decode.count, shape)
    if shape.sliding_window is not None:
        visible &= positions >= lengths - shape.sliding_window
    # The heads that share a key head stand as rows of one query block: no key is copied per head.
    grouped = queries.reshape(decode.count, shape.num_kv_heads, -1, shape.head_dim).to(keys.dtype)
    attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=visible[:, None, None, :])
    return attended.reshape(decode.count, -1).to(queries.dtype)


def _chunk_attention(queries: Tensor, cache: Tensor, chunk: PrefillChunk, shape: AttentionShape) -> Tensor:
    """Rows of one sequence: [m, num_heads, head_dim] -> [m, num_heads · head_dim]."""
    num_rows = queries.shape[0]
    context = chunk.context_start + num_rows
    gathered = cache.index_select(0, chunk.block_ids).flatten(0, 1)[:context]
    keys, values = _keys_and_values(gathered, 1, shape)
    heads = queries.transpose(0, 1).unsqueeze(0).to(keys.dtype)  # [1, num_heads, m, head_dim]
    if chunk.context_start == 0 and shape.sliding_window is None:
        attended = F.scaled_dot_product_attention(heads, keys, values, is_causal=True, enable_gqa=True)
    else:
        own = torch.arange(chunk.context_start, context, device=queries.device).unsqueeze(1)
        other = torch.arange(context, device=queries.device)
        visible = other <= own
        if shape.sliding_window is not None:
            visible &= other > own - shape.sliding_window
        attended = F.scaled_dot_product_attention(heads, keys, values, attn_mask=visible, enable_gqa=True)
    return attended[0].transpose(0, 1).reshape(num_rows, -1).to(queries.dtype)


def _keys_and_values(places: Tensor, sequences: int, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    """Of places [sequences · positions, features] of the cache, each [sequences, kv_heads, positions, head_dim]."""
    split = places.view(sequences, -1, 2, shape.num_kv_heads, shape.head_dim)
    return split[:, :, 0].transpose(1, 2), split[:, :, 1].transpose(1, 2)
