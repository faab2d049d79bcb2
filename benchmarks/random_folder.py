"""A base of random weights as a Hugging Face folder, for a server to serve: no real one of such a size is at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.random_base import WEIGHT_SPREAD, RandomWeights
from loraplex_server.model.config import DecoderConfig

_WRITERS = 4  # shards that are in memory at a time
_LOGIT_SPREAD = 8.0  # as far apart as a trained model's, so that golden prompts tell an adapter by the first


def write_random_base(
    folder: Path, shape: dict[str, Any], device: torch.device, on_shard: Callable[[int, int], None]
) -> None:
    """Fill `folder`, made when missing: config.json, tokenizer.json and a shard for each layer, in bf16.

    shape     contents of a config.json, with a vocabulary of at least 256
    device    where the weights are drawn
    on_shard  called with (done, total)
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = DecoderConfig.from_hf(shape)
    (folder / "config.json").write_text(json.dumps(shape, indent=1), encoding="utf-8")
    _byte_tokenizer(config.vocab_size).save(str(folder / "tokenizer.json"))
    weights = RandomWeights(config, device)
    shards = _shards(weights.names())
    head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"

    def write(file: str) -> None:
        tensors = {name: weights.tensor(name) for name in shards[file]}
        if head in tensors:
            tensors[head] *= _LOGIT_SPREAD / (WEIGHT_SPREAD * config.hidden_size**0.5)
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})

    with ThreadPoolExecutor(_WRITERS) as pool:
        for done, written in enumerate(as_completed(pool.submit(write, file) for file in shards), start=1):
            written.result()
            on_shard(done, len(shards))
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def _shards(names: list[str]) -> dict[str, list[str]]:
    """File -> its tensors: one for each layer, one for each table."""
    shards: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        key = f"layer-{int(parts[2]):03d}" if parts[1] == "layers" else parts[-2]
        shards.setdefault(f"model-{key}.safetensors", []).append(name)
    return shards


def _byte_tokenizer(vocab_size: int) -> Tokenizer:
    """Reads a text as its bytes; every other id is a word of its own, so that any token that is drawn has a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġword{number}" for number in range(len(alphabet), vocab_size)]
    vocabulary = {text: number for number, text in enumerate([*alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
