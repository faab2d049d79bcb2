"""Writes the package that the server loads: three files, no pickle, no path of the machine it was made on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from loraplex_trainer.errors import TrainingDivergedError
from loraplex_trainer.recipe.document import Recipe

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "manifest.json"


def write_package(
    folder: Path,
    recipe: Recipe,
    lora_tensors: dict[str, Tensor],
    base: dict[str, Any],
    training: dict[str, Any],
) -> None:
    """Write `folder`, made when missing, from PEFT's adapter state.

    Weights are stored as bf16, whatever they were trained in. `base` and `training` go into the manifest
    as they are. Raises TrainingDivergedError when a weight is not finite.
    """
    tensors = {key: _stored(key, value) for key, value in sorted(lora_tensors.items())}
    files = {
        CONFIG_FILE: canonical_json(peft_config(recipe)),
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
    }
    manifest = {
        "schema": 1,
        "name": recipe.name,
        "base": base,
        "system_sha256": hashlib.sha256(recipe.system.encode()).hexdigest(),
        "recipe_sha256": recipe.sha256(),
        "training": training,
        "num_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[MANIFEST_FILE] = canonical_json(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def peft_config(recipe: Recipe) -> dict[str, Any]:
    """The fields of `adapter_config.json` that any PEFT reader needs; target modules by their last name."""
    return {
        "base_model_name_or_path": recipe.base,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": recipe.lora.alpha,
        "lora_dropout": recipe.lora.dropout,
        "peft_type": "LORA",
        "r": recipe.lora.rank,
        "target_modules": list(recipe.lora.target_modules),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }


def canonical_json(content: dict[str, Any]) -> bytes:
    """The same bytes for the same content."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _stored(key: str, value: Tensor) -> Tensor:
    stored = value.detach().to("cpu", torch.bfloat16).contiguous()
    if not bool(torch.isfinite(stored).all()):
        raise TrainingDivergedError(f"{key} holds NaN or infinity; lower train.learning_rate")
    return stored
