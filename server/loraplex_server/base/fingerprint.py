"""Identity of a base model: adapters are bound to it."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from loraplex_adapters.base_spec import BaseSpec
from loraplex_server.base.chat_template import read_chat_template
from loraplex_server.cache_dir import default_cache_dir
from loraplex_server.model.checkpoint import weight_files
from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.tensor_names import module_shapes

_READERS = 8  # files that are read at a time; hashing holds no lock of the interpreter
# Keys of config.json that say who made the file, not what the model computes.
_IRRELEVANT_KEYS = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"})


def fingerprint(folder: Path, cache_dir: Path | None = None) -> str:
    """SHA-256, hex, over the config and the bytes of every weight file.

    Reading gigabytes takes seconds, so the result is remembered for as long as names, sizes and times stay the same.
    """
    memo = (cache_dir or default_cache_dir()) / "fingerprints" / f"{_state_key(folder)}.txt"
    if memo.is_file():
        return memo.read_text(encoding="ascii").strip()
    value = _compute(folder)
    memo.parent.mkdir(parents=True, exist_ok=True)
    partial = memo.with_suffix(f".{os.getpid()}")  # another process may compute the same
    partial.write_text(value, encoding="ascii")
    partial.replace(memo)
    return value


def base_spec(folder: Path, cache_dir: Path | None = None) -> BaseSpec:
    """Module shapes and identity, for checking adapters."""
    config = DecoderConfig.from_folder(folder)
    return BaseSpec(
        architecture=config.architecture,
        fingerprint=fingerprint(folder, cache_dir),
        num_layers=config.num_layers,
        module_shapes=module_shapes(config),
    )


def template_hash(folder: Path) -> str:
    """SHA-256, hex, of the chat template's text; empty where the base has none."""
    template = read_chat_template(folder)
    return hashlib.sha256(template.encode()).hexdigest() if template is not None else ""


def tokenizer_hash(folder: Path) -> str:
    """SHA-256, hex, of how tokenizer.json cuts text into which ids; empty where there is none.

    Not of its bytes: the libraries write the same tokenizer with other spaces, and merges in another form, from
    version to version.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return ""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    model = content["model"]
    identity = {
        "type": model.get("type"),
        "vocab": model.get("vocab"),
        "merges": [
            pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model.get("merges") or ()
        ],
        "added": sorted((token["id"], token["content"]) for token in content.get("added_tokens") or ()),
        "normalizer": content.get("normalizer"),
        "pre_tokenizer": content.get("pre_tokenizer"),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _compute(folder: Path) -> str:
    digest = hashlib.sha256()
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    relevant = {key: value for key, value in config.items() if key not in _IRRELEVANT_KEYS}
    digest.update(json.dumps(relevant, sort_keys=True, separators=(",", ":")).encode())
    with ThreadPoolExecutor(_READERS) as pool:
        for file_digest in pool.map(_file_digest, weight_files(folder)):
            digest.update(file_digest)
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _state_key(folder: Path) -> str:
    parts = []
    for path in [folder / "config.json", *weight_files(folder)]:
        state = path.stat()
        parts.append(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
