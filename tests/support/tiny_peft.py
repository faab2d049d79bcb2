"""A tiny random Llama and what the fixtures make of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
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


def with_tensors(saved: SavedAdapter, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    shutil.copytree(saved.folder, folder, dirs_exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def with_config(saved: SavedAdapter, folder: Path, **fields: Any) -> Path:
    shutil.copytree(saved.folder, folder, dirs_exist_ok=True)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder
