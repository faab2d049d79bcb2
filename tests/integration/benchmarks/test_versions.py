"""Reports of benchmarks say which sources they are of, wherever git can tell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.versions import commit, versions


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit of one file."""
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "source.py").write_text("before")
    for arguments in (["init", "-q"], ["add", "source.py"], ["commit", "-q", "-m", "first"]):
        identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)
    return folder


def test_a_commit_is_named_with_a_plus_where_the_tree_is_changed(repository: Path) -> None:
    clean = commit(repository)
    (repository / "report.json").write_text("{}")
    beside = commit(repository)
    (repository / "source.py").write_text("after")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    )

    assert clean == head.stdout.strip()
    assert beside == clean, "a report that is written beside the sources changes none of them"
    assert commit(repository) == f"{clean}+"


def test_there_is_none_without_a_repository_and_without_git(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = repository / "copied"
    within.mkdir()

    assert commit(tmp_path) is None
    assert commit(within) is None, "the repository around a copy of the sources is not theirs"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(repository) is None


def test_every_report_names_what_it_was_measured_with() -> None:
    assert {"commit", "driver", "python", "torch"} <= versions().keys()
