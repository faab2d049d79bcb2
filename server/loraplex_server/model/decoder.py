"""The transformer decoder of the Llama family: Llama 2/3, Mistral, Qwen2/2.5, Qwen3, SmolLM2.

One packed product each for q,k,v and for gate,up; keys and values go straight to the paged cache; logits are computed
only for the rows that need them. Rows of all sequences are packed into one dimension: no padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loraplex_server.kernels.fastest_ops import layer_ops
from loraplex_server.kernels.layer_ops import HeadNorms, Rotation
from loraplex_server.kernels.paged_attention import AttentionShape
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
        dtype = weights.final_norm.dtype
        cos, sin = rope_table
        self._cos = torch.cat((cos, cos), dim=-1).to(dtype)
        self._sin = torch.cat((-sin, sin), dim=-1).to(dtype)
        self.ops = layer_ops(weights.final_norm.device, dtype)
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
        rotation = Rotation(self._cos[batch.positions], self._sin[batch.positions])
        delta = None
        for index, layer in enumerate(self._weights.layers):
            x = self._add_and_norm(hidden, delta, layer.input_norm)
            delta = self._attend(index, layer, x, rotation, batch, kv_cache[index])
            x = self._add_and_norm(hidden, delta, layer.post_attention_norm)
            delta = self._feed_forward(index, layer, x, batch)
        x = self._add_and_norm(hidden, delta, self._weights.final_norm)
        if batch.logit_rows is not None:
            x = x[batch.logit_rows]
        return self._weights.lm_head(x).float()

    def _add_and_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        return self.ops.rms_norm(hidden, delta, weight, self.config.rms_norm_eps)

    def _attend(
        self,
        index: int,
        layer: DecoderLayer,
        x: Tensor,
        rotation: Rotation,
        batch: ForwardBatch,
        cache: Tensor,
    ) -> Tensor:
        """What attention adds to the residual stream; x [n, hidden] is its norm."""
        qkv = self._project(layer.qkv, "qkv", index, x, batch)
        norms = None
        if layer.q_norm is not None and layer.k_norm is not None:
            norms = HeadNorms(layer.q_norm, layer.k_norm, self.config.rms_norm_eps)
        shape = self._shapes[index]
        self.ops.rotate_and_store(qkv, rotation, norms, batch.kv_slots, cache, shape)
        attended = self.ops.attention(qkv, cache, batch.decode, batch.prefills, shape)
        return self._project(layer.o, "o", index, attended, batch)

    def _feed_forward(self, index: int, layer: DecoderLayer, x: Tensor, batch: ForwardBatch) -> Tensor:
        """What down(silu(gate(x)) · up(x)) adds to the residual stream; x [n, hidden] is its norm."""
        activated = self.ops.silu_mul(self._project(layer.gate_up, "gate_up", index, x, batch))
        return self._project(layer.down, "down", index, activated, batch)

    def _project(self, linear: Linear, projection: str, index: int, x: Tensor, batch: ForwardBatch) -> Tensor:
        y = linear(x)
        if batch.lora is not None:
            batch.lora.add(index, projection, x, y)
        return y
