"""Converts a Llama GGUF file to a Hugging Face folder: bf16 safetensors, config, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_LEVEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def convert_gguf(gguf_path: Path, folder: Path, progress: Progress) -> None:
    """Write `folder` (existing, empty) from a GGUF of the llama architecture.

    Weights become bf16: no precision that is served is wider, and the GGUF's own 4-bit values carry far less.
    """
    from gguf import GGUFReader
    from safetensors.torch import save_file

    reader = GGUFReader(str(gguf_path))
    config = _config(reader)
    tensors: dict[str, Tensor] = {}
    for done, tensor in enumerate(reader.tensors, start=1):
        name, value = _convert_tensor(tensor, config)
        tensors[name] = value
        progress(done, len(reader.tensors))
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    _save_tokenizer(gguf_path, folder)


def _config(reader: Any) -> dict[str, Any]:
    def field(name: str) -> Any:
        return reader.fields[name].contents()

    num_heads = field("llama.attention.head_count")
    hidden_size = field("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": hidden_size // num_heads,
        "vocab_size": field("llama.vocab_size"),
        "max_position_embeddings": field("llama.context_length"),
        # Stored as fp32; the shortest decimal that reads back the same is what the model's authors wrote.
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_theta": field("llama.rope.freq_base"),
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
    }


def _convert_tensor(tensor: Any, config: dict[str, Any]) -> tuple[str, Tensor]:
    from gguf import dequantize

    value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    name: str = tensor.name
    if name in _TOP_LEVEL_NAMES:
        return _TOP_LEVEL_NAMES[name], value.to(torch.bfloat16)
    _, layer, kind, suffix = name.split(".")
    if kind == "attn_q":
        value = _unpermute(value, config["num_attention_heads"])
    elif kind == "attn_k":
        value = _unpermute(value, config["num_key_value_heads"])
    return f"model.layers.{layer}.{_TENSOR_NAMES[kind]}.{suffix}", value.to(torch.bfloat16)


def _unpermute(weight: Tensor, num_heads: int) -> Tensor:
    """GGUF interleaves the two halves that rotate together; Hugging Face keeps them apart."""
    half = weight.shape[0] // num_heads // 2
    return weight.view(num_heads, half, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()


def _save_tokenizer(gguf_path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf_path.parent), gguf_file=gguf_path.name)
    tokenizer.save_pretrained(folder)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
