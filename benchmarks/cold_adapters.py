"""Random adapters on disk as a server holds them: an image for each, of a package that was checked."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.random_base import RandomAdapters
from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import match_to_base
from loraplex_adapters.package import PackageLimits, read_package
from loraplex_server.adapter_image import write_image
from loraplex_server.engine.adapter_loader import AdapterReader, HostPlace
from loraplex_server.engine.backend import Backend
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.store_reader import StorePlaces, StoreReader

_PARENTS = {name: "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn" for name in (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
)}  # fmt: skip


def write_images(folder: Path, spec: BaseSpec, layout: str, rank: int, count: int) -> list[str]:
    """Packages under folder/store and their images under folder/images; returns the digests.

    The weights are the same in all; only alpha differs, and so the digest and every byte of B.
    """
    weights = _write_weights(folder / "weights.safetensors", spec, rank)
    digests = []
    for number in range(count):
        package_folder = folder / f"package-{number}"
        package_folder.mkdir()
        (package_folder / "adapter_model.safetensors").hardlink_to(weights)
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank + number,
            "target_modules": sorted(_PARENTS),
            "base_model_name_or_path": "random",
        }
        (package_folder / "adapter_config.json").write_text(json.dumps(config))
        package = read_package(package_folder, PackageLimits(max_bytes=2**33, max_rank=rank))
        write_image(package, match_to_base(package, spec, rank), spec, layout, folder / "images")
        digests.append(package.digest)
    return digests


def _write_weights(path: Path, spec: BaseSpec, rank: int) -> Path:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(spec.num_layers):
        for name, parent in _PARENTS.items():
            inputs, outputs = spec.module_shapes[name]
            prefix = f"base_model.model.model.layers.{layer}.{parent}.{name}"
            for part, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
                values = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.01, generator=generator)
                tensors[f"{prefix}.{part}.weight"] = values
    save_file(tensors, path)
    return path


def images_or_random(
    folder: Path, config: EngineConfig, spec: BaseSpec, backend: Backend, adapters: RandomAdapters
) -> AdapterReader:
    """Reads digests from images as a server does, and "<rank>-<number>" from memory."""
    read_image = StoreReader(
        StorePlaces(folder / "store", folder / "images", backend.adapter_layout),
        spec,
        config.max_lora_rank,
        backend.pack_adapter,
        backend.residency_sizes.load_threads,
    )

    def read(digest: str, place: HostPlace) -> None:
        (adapters.read if "-" in digest else read_image)(digest, place)

    return read
