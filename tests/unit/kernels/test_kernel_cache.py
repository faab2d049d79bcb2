"""The cache of compiled kernels is a help, never a condition."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from loraplex_server.kernels import nvrtc

COMPILED = b"\x7fELF and so on"


class CountingNvrtc:
    version = (13, 0)

    def __init__(self) -> None:
        self.compiled = 0

    def compile(self, *_: object) -> bytes:
        self.compiled += 1
        return COMPILED


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> CountingNvrtc:
    compiler = CountingNvrtc()
    monkeypatch.setattr(nvrtc, "_nvrtc", lambda: compiler)
    return compiler


def compiled(cache: Path) -> bytes:
    return nvrtc.compile_cubin("nf4.cu", {"ROWS": 8}, "sm_90a", cache)


def test_what_was_compiled_once_is_read(tmp_path: Path, compiler: CountingNvrtc) -> None:
    assert [compiled(tmp_path), compiled(tmp_path)] == [COMPILED, COMPILED]
    assert compiler.compiled == 1


@pytest.mark.parametrize("damage", ["emptied", "cut", "changed"])
def test_a_damaged_file_is_compiled_anew_and_replaced(
    tmp_path: Path, compiler: CountingNvrtc, damage: str
) -> None:
    compiled(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes({"emptied": b"", "cut": whole[:-1], "changed": whole[:-1] + b"!"}[damage])

    assert [compiled(tmp_path), compiled(tmp_path)] == [COMPILED, COMPILED]
    assert compiler.compiled == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, compiler: CountingNvrtc, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()

    with caplog.at_level(logging.WARNING):
        assert compiled(tmp_path / "file" / "cache") == COMPILED

    assert "compiled again at the next start" in caplog.text


def test_a_full_disk_costs_a_warning_and_leaves_nothing_behind(
    tmp_path: Path, compiler: CountingNvrtc, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)

    with caplog.at_level(logging.WARNING):
        assert compiled(tmp_path) == COMPILED

    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []
