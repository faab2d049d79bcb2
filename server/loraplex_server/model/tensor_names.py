"""The tensors that a checkpoint of a supported architecture must hold."""

from __future__ import annotations

from math import prod

from loraplex_server.model.config import DecoderConfig


def module_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Linear modules of a layer -> (in_features, out_features)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def has_bias(config: DecoderConfig, module: str) -> bool:
    """Whether a linear module of a layer carries a bias."""
    if module in ("q_proj", "k_proj", "v_proj"):
        return config.qkv_bias
    return config.o_bias if module == "o_proj" else config.mlp_bias


def expected_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, all that the decoder reads."""
    hidden = (config.hidden_size,)
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
        "model.norm.weight": hidden,
    }
    if not config.tie_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    shapes = module_shapes(config)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = hidden
        tensors[f"{prefix}.post_attention_layernorm.weight"] = hidden
        if config.qk_norm:
            tensors[f"{prefix}.self_attn.q_norm.weight"] = (config.head_dim,)
            tensors[f"{prefix}.self_attn.k_norm.weight"] = (config.head_dim,)
        for module, (in_features, out_features) in shapes.items():
            parent = "self_attn" if module[:2] in ("q_", "k_", "v_", "o_") else "mlp"
            tensors[f"{prefix}.{parent}.{module}.weight"] = (out_features, in_features)
            if has_bias(config, module):
                tensors[f"{prefix}.{parent}.{module}.bias"] = (out_features,)
    return tensors


def parameter_count(config: DecoderConfig) -> int:
    """Parameters of the decoder; a tied table counts once."""
    return sum(prod(shape) for shape in expected_tensors(config).values())
