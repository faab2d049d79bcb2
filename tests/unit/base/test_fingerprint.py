"""The fingerprint changes with what a base computes, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from loraplex_adapters.base_spec import LORA_MODULES
from loraplex_server.base.fingerprint import base_spec, fingerprint, template_hash, tokenizer_hash


@pytest.fixture
def folder(complete_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(complete_base, tmp_path / "base"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_one_changed_weight_changes_it(folder: Path, cache: Path) -> None:
    before = fingerprint(folder, cache)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    assert fingerprint(folder, cache) != before


def test_a_config_that_computes_something_else_changes_it(folder: Path, cache: Path) -> None:
    before = fingerprint(folder, cache)
    change_config(folder, rms_norm_eps=1e-3)
    assert fingerprint(folder, cache) != before


def test_place_writer_and_name_of_the_model_do_not_change_it(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    before = fingerprint(folder, cache)
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    change_config(moved, _name_or_path="somebody/else", transformers_version="9.9")
    (moved / "README.md").write_text("prose")
    assert fingerprint(moved, cache) == before


def test_it_is_remembered_while_the_files_stay_the_same(folder: Path, cache: Path) -> None:
    value = fingerprint(folder, cache)
    [memo] = (cache / "fingerprints").iterdir()
    assert memo.read_text() == value
    memo.write_text("f" * 64)
    assert fingerprint(folder, cache) == "f" * 64, "the files were read again"
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert fingerprint(folder, cache) == value, "a touched file was not read again"


def test_the_base_spec_has_the_shape_of_every_module(folder: Path, cache: Path) -> None:
    spec = base_spec(folder, cache)
    weights = load_file(folder / "model.safetensors")
    assert (spec.architecture, spec.num_layers) == ("LlamaForCausalLM", 2)
    assert set(spec.module_shapes) == set(LORA_MODULES)
    for module, (in_features, out_features) in spec.module_shapes.items():
        [weight] = [
            value
            for name, value in weights.items()
            if f"layers.1.{module}" in name.replace("self_attn.", "").replace("mlp.", "")
        ]
        assert tuple(weight.shape) == (out_features, in_features), module


def test_the_template_hash_is_of_its_text_wherever_it_lies(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings.write_text(json.dumps({"chat_template": "{{ messages }}"}))
    inside = template_hash(folder)
    settings.unlink()
    assert template_hash(folder) == ""
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert template_hash(folder) == inside
    (folder / "chat_template.jinja").write_text("{{ messages }} ")
    assert template_hash(folder) != inside


def rewrite_tokenizer(folder: Path, indent: int | None = None, **fields: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}, indent=indent))


def test_the_tokenizer_hash_is_of_what_it_does_and_not_of_how_it_is_written(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    rewrite_tokenizer(folder, model={**model, "merges": [["a", "b"], ["c", "d e"]]})
    before = tokenizer_hash(folder)

    rewrite_tokenizer(folder, indent=3, model={**model, "merges": ["a b", "c d e"]}, truncation=None)
    assert tokenizer_hash(folder) == before
    rewrite_tokenizer(folder, model={**model, "merges": ["c d e", "a b"]})
    assert tokenizer_hash(folder) != before


def test_another_vocabulary_or_added_token_is_another_tokenizer(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    before = tokenizer_hash(folder)

    rewrite_tokenizer(folder, added_tokens=[*content["added_tokens"], {"id": 10**6, "content": "<|new|>"}])
    changed = tokenizer_hash(folder)
    rewrite_tokenizer(folder, added_tokens=content["added_tokens"], pre_tokenizer={"type": "Whitespace"})

    assert len({before, changed, tokenizer_hash(folder)}) == 3
    (folder / "tokenizer.json").unlink()
    assert tokenizer_hash(folder) == ""
