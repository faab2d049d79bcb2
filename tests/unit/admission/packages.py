"""A tiny base and adapters for it, written without torch."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import module_path
from loraplex_server.admission.jobs import AdmissionJob

CONFIG, WEIGHTS, MANIFEST, SIGNATURE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
    "model.sig",
)
SPEC = BaseSpec(
    "LlamaForCausalLM",
    "f" * 64,
    num_layers=2,
    module_shapes={"q_proj": (32, 32), "v_proj": (32, 16), "up_proj": (32, 48)},
)
TEMPLATE_HASH, TOKENIZER_HASH = "1" * 64, "2" * 64
RANK = 4


def write_package(folder: Path, *, seed: int = 1, rank: int = RANK, **config: Any) -> Path:
    """A sound package of q_proj and v_proj; `config` changes fields of its adapter_config.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(seed=seed, rank=rank), folder / WEIGHTS)
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (folder / CONFIG).write_text(json.dumps({**fields, **config}))
    return folder


def tensors(*, seed: int = 1, rank: int = RANK) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    result = {}
    for layer in range(SPEC.num_layers):
        for module in ("q_proj", "v_proj"):
            in_features, out_features = SPEC.module_shapes[module]
            key = f"base_model.model.{module_path(layer, module)}"
            result[f"{key}.lora_A.weight"] = random.normal(size=(rank, in_features)).astype(np.float32)
            result[f"{key}.lora_B.weight"] = random.normal(size=(out_features, rank)).astype(np.float32)
    return result


def write_manifest(folder: Path, **base: Any) -> Path:
    """A manifest as the trainer writes it; `base` replaces fields of its base."""
    fields = {
        "id": "tiny",
        "fingerprint": SPEC.fingerprint,
        "template_sha256": TEMPLATE_HASH,
        "tokenizer_sha256": TOKENIZER_HASH,
    }
    manifest = {
        "schema": 1,
        "name": "faq",
        "base": {**fields, **base},
        "files": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)
        },
        "training": {"seed": 42},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def job(folder: Path, **fields: Any) -> AdmissionJob:
    defaults = {"template_hash": TEMPLATE_HASH, "tokenizer_hash": TOKENIZER_HASH}
    return AdmissionJob(folder=folder, spec=SPEC, max_rank=16, **{**defaults, **fields})


def raw_safetensors(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data
