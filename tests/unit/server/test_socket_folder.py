"""The folder of an engine's sockets goes with its server, also with one that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from loraplex_server.socket_folder import socket_folder

HOLD = """
import sys
from loraplex_server.socket_folder import socket_folder
with socket_folder() as folder:
    (folder / "commands").touch()
    print(folder.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_killed_servers_folder_is_removed_by_the_next_and_a_living_ones_stays(scratch: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    with holder:
        assert holder.stdout is not None
        held = holder.stdout.readline().strip()
        with socket_folder() as mine:
            assert sorted(os.listdir(scratch)) == sorted([held, mine.name])
        assert os.listdir(scratch) == [held]
        holder.kill()
    with socket_folder() as mine:
        assert os.listdir(scratch) == [mine.name]
    assert os.listdir(scratch) == []


def test_nobody_else_can_look_into_it(scratch: Path) -> None:
    with socket_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700


def test_what_only_has_such_a_name_stays(scratch: Path) -> None:
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (scratch / "loraplex-engine-link").symlink_to(elsewhere)
    (scratch / "loraplex-engine-file").touch()
    (scratch / "loraplex-engine-no-lock").mkdir()
    with socket_folder() as folder:
        assert len(os.listdir(scratch)) == 5
        assert (elsewhere / "lock").exists()
        assert folder.parent == scratch
