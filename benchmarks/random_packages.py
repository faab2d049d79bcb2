"""Random adapters on all linear layers as PEFT packages on disk, any number of them for the bytes of one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.package import WEIGHTS_FILE
from loraplex_adapters.peft_config import CONFIG_FILE

_PARENTS = {name: "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn" for name in (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
)}  # fmt: skip
_SPREAD = 0.02  # of A and B: such an adapter changes what a random base says as clearly as a trained one does


def write_packages(folder: Path, spec: BaseSpec, rank: int, count: int, seed: int = 3) -> list[Path]:
    """`count` packages in the empty folder `folder`, made when missing; returns theirs.

    Their weights are one file with several names; only alpha differs, and so the digest and every byte of B as an
    engine holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = _write_weights(folder / "weights.safetensors", spec, rank, seed)
    packages = []
    for number in range(count):
        package = folder / f"package-{number}"
        package.mkdir()
        (package / WEIGHTS_FILE).hardlink_to(weights)
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank + number,
            "target_modules": sorted(_PARENTS),
            "base_model_name_or_path": "random",
        }
        (package / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        packages.append(package)
    return packages


def _write_weights(path: Path, spec: BaseSpec, rank: int, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(spec.num_layers):
        for name, parent in _PARENTS.items():
            inputs, outputs = spec.module_shapes[name]
            prefix = f"base_model.model.model.layers.{layer}.{parent}.{name}"
            for part, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
                values = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, _SPREAD, generator=generator)
                tensors[f"{prefix}.{part}.weight"] = values
    save_file(tensors, path)
    return path
