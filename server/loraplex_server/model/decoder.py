"""The transformer decoder of the Llama family: Llama 2/3, Mistral, Qwen2/2.5, Qwen3, SmolLM2.

One packed product each for q,k,v and for gate,up; keys and values go straight to the paged cache; logits are computed
only for the rows that need them. Rows of all sequences are packed into one dimension: no padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from loraplex_server.kernels.paged_attention import AttentionShape, paged_attention
from loraplex_server.model.batch import ForwardBatch
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.linear import Linear


class Embedding(Protocol):
    """Token ids [n] int64 -> [n, hidden] in the compute dtype, freshly allocated."""

    def __call__(self, token_ids: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Weights of one layer; norms are [features] in the compute dtype."""

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None  # [head_dim], Qwen3
    k_norm: Tensor | None
    o: Linear
    post_attention_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights of a decoder."""

    embedding: Embedding
    layers: list[DecoderLayer]
    final_norm: Tensor
    lm_head: Linear


class Decoder:
    """Runs forward passes. Holds weights and constants only; keys, values and adapters are passed in."""

    def __init__(
        self, config: DecoderConfig, weights: DecoderWeights, rope_table: tuple[Tensor, Tensor]
    ) -> None:
        """`rope_table` is (cos, sin), each [max_positions, head_dim / 2] fp32."""
        self.config = config
        self._weights = weights
        self._num_query_columns = config.num_heads * config.head_dim
        self._num_kv_columns = config.num_kv_heads * config.head_dim
        dtype = weights.final_norm.dtype
        cos, sin = rope_table
        # Both halves of a head turn by the same angle: store what multiplies x and what multiplies its swapped halves.
        self._cos = torch.cat((cos, cos), dim=-1).to(dtype)
        self._sin = torch.cat((-sin, sin), dim=-1).to(dtype)
        self._shapes = [
            AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, window)
            for window in config.sliding_window_of_layer
        ]

    def forward(self, batch: ForwardBatch, kv_cache: list[Tensor]) -> Tensor:
        """Logits [m, vocab] fp32 of the rows that `batch.logit_rows` names.

        kv_cache  one tensor per layer, [num_blocks, block_size, 2 · kv_heads · head_dim]: keys, then values. Rows of
                  the batch are written at `batch.kv_slots` before they are read.
        """
        hidden = self._weights.embedding(batch.token_ids)
        cos = self._cos[batch.positions].unsqueeze(1)  # [n, 1, head_dim]
        sin = self._sin[batch.positions].unsqueeze(1)
        for index, layer in enumerate(self._weights.layers):
            self._attend(index, layer, hidden, cos, sin, batch, kv_cache[index])
            self._feed_forward(index, layer, hidden, batch)
        if batch.logit_rows is not None:
            hidden = hidden[batch.logit_rows]
        return self._weights.lm_head(self._norm(hidden, self._weights.final_norm)).float()

    def _attend(
        self,
        index: int,
        layer: DecoderLayer,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: ForwardBatch,
        cache: Tensor,
    ) -> None:
        """hidden += attention(norm(hidden)), in place."""
        config = self.config
        x = self._norm(hidden, layer.input_norm)
        qkv = self._project(layer.qkv, "qkv", index, x, batch)
        num_rotated = config.num_heads + config.num_kv_heads
        rotated = qkv[:, : self._num_query_columns + self._num_kv_columns].view(
            -1, num_rotated, config.head_dim
        )
        if layer.q_norm is not None and layer.k_norm is not None:
            self._norm_heads(rotated, layer.q_norm, layer.k_norm)
        _rotate(rotated, cos, sin)
        key_value = qkv[:, self._num_query_columns :]
        cache.view(-1, cache.shape[-1]).index_copy_(0, batch.kv_slots, key_value.to(cache.dtype))
        queries = qkv[:, : self._num_query_columns].view(-1, config.num_heads, config.head_dim)
        attended = paged_attention(queries, cache, batch.decode, batch.prefills, self._shapes[index])
        hidden.add_(self._project(layer.o, "o", index, attended, batch))

    def _feed_forward(self, index: int, layer: DecoderLayer, hidden: Tensor, batch: ForwardBatch) -> None:
        """hidden += down(silu(gate(x)) · up(x)) with x = norm(hidden), in place."""
        x = self._norm(hidden, layer.post_attention_norm)
        gate_up = self._project(layer.gate_up, "gate_up", index, x, batch)
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.silu(gate).mul_(up)
        hidden.add_(self._project(layer.down, "down", index, activated, batch))

    def _project(self, linear: Linear, projection: str, index: int, x: Tensor, batch: ForwardBatch) -> Tensor:
        y = linear(x)
        if batch.lora is not None:
            batch.lora.add(index, projection, x, y)
        return y

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.config.rms_norm_eps)

    def _norm_heads(self, heads: Tensor, q_norm: Tensor, k_norm: Tensor) -> None:
        """Normalize each query and key head by itself, in place; heads [n, num_heads + num_kv_heads, head_dim]."""
        queries, keys = heads[:, : self.config.num_heads], heads[:, self.config.num_heads :]
        queries.copy_(self._norm(queries, q_norm))
        keys.copy_(self._norm(keys, k_norm))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary embedding in place: x [n, heads, head_dim]; cos, sin [n, 1, head_dim], first half of sin negated."""
    half = x.shape[-1] // 2
    turned = torch.cat((x[..., half:], x[..., :half]), dim=-1).mul_(sin)
    x.mul_(cos).add_(turned)
