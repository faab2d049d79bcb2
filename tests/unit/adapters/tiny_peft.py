"""A tiny random Llama and what the fixtures make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

NUM_LAYERS = 2
HIDDEN, FFN, KV = 32, 48, 16


@dataclass(frozen=True)
class SavedAdapter:
    """A PEFT model and the folder it was saved to."""

    model: PeftModel
    folder: Path


SaveAdapter = Callable[..., SavedAdapter]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=HIDDEN,
            intermediate_size=FFN,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )
