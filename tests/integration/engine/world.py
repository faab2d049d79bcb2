"""A tiny random base, PEFT adapters of many kinds on it, and a store that holds their packages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from loraplex_adapters.base_spec import LORA_MODULES
from loraplex_adapters.package import WEIGHTS_FILE
from loraplex_adapters.store import PackageStore
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.engine import Engine
from loraplex_server.engine.kv_cache import block_bytes
from loraplex_server.model.config import DecoderConfig

VOCAB_SIZE = 96
EOS = 2
BLOCK_SIZE = 4
CONTEXT = 128
ADAPTERS: dict[str, dict[str, Any]] = {
    "rank-2": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "rank-16": {"r": 16, "lora_alpha": 16, "target_modules": list(LORA_MODULES)},
    "patterns": {
        "r": 8,
        "lora_alpha": 12,
        "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"],
        "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.down_proj": 5},
        "alpha_pattern": {"o_proj": 20, r"layers\.0\.self_attn\.k_proj": 2},
    },
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": "all-linear"},
    "one-layer": {"r": 6, "lora_alpha": 9, "target_modules": ["up_proj"], "layers_to_transform": [1]},
}
"""Name -> LoraConfig: ranks 2 to 16, rank_pattern, alpha_pattern, rsLoRA, few and all target modules."""


@dataclass(frozen=True)
class World:
    """Read-only."""

    base: Path
    store: Path
    folders: dict[str, Path]  # adapter -> its PEFT folder
    digests: dict[str, str]
    damaged: dict[str, str]  # what is wrong -> digest of a package that cannot be used any more

    def digest(self, adapter: str | None) -> str | None:
        return None if adapter is None else self.digests[adapter]


def make_world(root: Path) -> World:
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    base = root / "base"
    randomized(LlamaForCausalLM(config), spread=0.12).save_pretrained(base)
    store = PackageStore(root / "store")
    folders, digests = {}, {}
    for seed, (name, fields) in enumerate(ADAPTERS.items()):
        folders[name] = save_adapter(base, root / name, seed, fields)
        digests[name] = store.put(folders[name]).digest
    return World(base, root / "store", folders, digests, _damaged_packages(base, store, root))


def _damaged_packages(base: Path, store: PackageStore, root: Path) -> dict[str, str]:
    """Stored whole, then spoiled behind the store's back."""
    digests = {}
    for seed, damage in enumerate(("changed", "cut", "emptied", "missing"), start=100):
        folder = save_adapter(base, root / damage, seed, ADAPTERS["rank-2"])
        package = store.put(folder)
        digests[damage] = package.digest
        weights = package.folder / WEIGHTS_FILE
        content = bytearray(weights.read_bytes())
        content[-2] ^= 1
        match damage:
            case "changed":
                weights.write_bytes(content)
            case "cut":
                weights.write_bytes(content[: len(content) // 2])
            case "emptied":
                weights.unlink()
            case _:
                store.delete(package.digest)
    return digests


def randomized(model: Any, spread: float) -> Any:
    """Weights large enough that every part shows in the logits, and norms that are not all one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name
            parameter.normal_(mean=1.0 if is_norm else 0.0, std=0.2 if is_norm else spread)
    return model


def save_adapter(base: Path, folder: Path, seed: int, fields: dict[str, Any], spread: float = 0.15) -> Path:
    """A random adapter that changes what is said."""
    model = LlamaForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=spread)
    adapted.save_pretrained(folder)
    return folder


def start_engine(world: World, *, num_blocks: int = 256, **changes: Any) -> Engine:
    """A small fp32 engine on the CPU; `changes` are fields of EngineConfig."""
    block_size = changes.get("block_size", BLOCK_SIZE)
    dtype = torch.float32 if changes.get("quantization", "fp32") == "fp32" else torch.bfloat16
    kv_bytes = num_blocks * block_bytes(DecoderConfig.from_folder(world.base), block_size, dtype)
    settings: dict[str, Any] = {
        "quantization": "fp32",
        "device": "cpu",
        "max_context_tokens": CONTEXT,
        "max_batched_tokens": 256,
        "max_running": 16,
        "block_size": block_size,
        "kv_cache_bytes": kv_bytes,
        "adapter_slots": 8,
        "adapter_arena_bytes": 4 * 2**20,
        "num_threads": 1,
    }
    return Engine(EngineConfig(base_path=world.base, store_path=world.store, **{**settings, **changes}))
