"""The weights that a decoder multiplies with, under the names that transformers gives them."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_server.model.decoder import Decoder


def dequantized_weights(decoder: Decoder) -> dict[str, Tensor]:
    """Linear layers, embedding and output head in fp32; norms and biases are left out."""
    config, weights = decoder.config, decoder._weights
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    named: dict[str, Tensor] = {
        "model.embed_tokens.weight": weights.embedding(torch.arange(config.vocab_size)).float(),
        "lm_head.weight": weights.lm_head.dequantized().float(),
    }
    for index, layer in enumerate(weights.layers):
        q, k, v = torch.split(layer.qkv.dequantized().float(), [queries, keys, keys])
        gate, up = layer.gate_up.dequantized().float().chunk(2)
        parts = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.o.dequantized().float(),
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down.dequantized().float(),
        }
        named |= {f"model.layers.{index}.{name}.weight": weight for name, weight in parts.items()}
    return named
