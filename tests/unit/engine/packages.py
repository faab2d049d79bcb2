"""Small packages with random weights, made without training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import Place, module_path
from loraplex_adapters.package import AdapterPackage, read_package


def save_package(
    folder: Path,
    spec: BaseSpec,
    ranks: dict[Place, int],
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    alpha: int = 5,
) -> AdapterPackage:
    """A PEFT folder with one rank per (layer, module)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for (layer, module), rank in ranks.items():
        in_features, out_features = spec.module_shapes[module]
        key = f"base_model.model.{module_path(layer, module)}"
        for part, shape in (("A", (rank, in_features)), ("B", (out_features, rank))):
            # Of many magnitudes, so that rounding goes either way.
            values = torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator).exp2()
            tensors[f"{key}.lora_{part}.weight"] = values.to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    paths = {module_path(layer, module): rank for (layer, module), rank in ranks.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": next(iter(paths.values())),
        "lora_alpha": alpha,
        "target_modules": sorted(paths),
        "rank_pattern": {path.replace(".", r"\."): rank for path, rank in paths.items()},
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return read_package(folder)
