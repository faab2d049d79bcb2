"""What a user may name as base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from loraplex_server.base.resolve import resolve_base
from loraplex_server.errors import BaseModelError, BaseModelInvalidError, UnsupportedArchitectureError

REVISION = "0" * 40


@pytest.fixture
def folder(complete_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(complete_base, tmp_path / "base"))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache on a machine that reaches no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_snapshot(hub_cache: Path, complete_base: Path) -> Path:
    """What an earlier download of acme/tiny leaves behind."""
    repository = hub_cache / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    return Path(shutil.copytree(complete_base, repository / "snapshots" / REVISION))


def test_a_complete_folder_is_taken_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert resolve_base(str(folder)) == folder.resolve()
    assert resolve_base("base") == folder.resolve()


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer.json"),
        ("model.safetensors", "no safetensors weights"),
    ],
)
def test_an_incomplete_folder_is_refused_by_what_it_lacks(folder: Path, removed: str, message: str) -> None:
    (folder / removed).unlink()
    with pytest.raises(BaseModelInvalidError, match=message):
        resolve_base(str(folder))


def test_pickle_weights_are_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelInvalidError, match="pickle"):
        resolve_base(str(folder))


def test_another_architecture_is_refused_in_one_line_that_lists_the_supported(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(UnsupportedArchitectureError, match=r"Mamba.*Llama.*Mistral.*Qwen2.*Qwen3") as raised:
        resolve_base(str(folder))
    assert "\n" not in str(raised.value)


def test_a_file_is_not_a_base(folder: Path) -> None:
    with pytest.raises(BaseModelInvalidError, match="is a file"):
        resolve_base(str(folder / "model.safetensors"))


@pytest.mark.parametrize("name", ["nothing-here", "./nothing/here", "/nothing/here", "a/b/c", "../a/b"])
def test_a_path_that_is_not_there_is_never_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(BaseModelInvalidError, match="no folder"):
        resolve_base(name)


@pytest.mark.parametrize("name", ["acme/ti--ny", "acme/ti..ny"])
def test_an_id_that_no_hub_would_take_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(BaseModelInvalidError, match="no Hugging Face id") as raised:
        resolve_base(name)
    assert "\n" not in str(raised.value)


def test_an_id_is_found_in_the_local_cache_without_a_hub(hub_cache: Path, complete_base: Path) -> None:
    snapshot = put_snapshot(hub_cache, complete_base)
    assert resolve_base("acme/tiny").samefile(snapshot)


def test_an_id_that_is_not_cached_is_one_line_when_no_hub_answers(hub_cache: Path) -> None:
    with pytest.raises(BaseModelError, match="'acme/tiny'") as raised:
        resolve_base("acme/tiny")
    assert "\n" not in str(raised.value)


def test_nothing_is_downloaded_where_that_is_not_allowed(hub_cache: Path, complete_base: Path) -> None:
    snapshot = put_snapshot(hub_cache, complete_base)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="not in the local Hugging Face cache"):
        resolve_base("acme/tiny", allow_download=False)
