"""`loraplex serve` as a child process on a tiny base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.complete_base import write_adapter, write_complete_base


@dataclass(frozen=True)
class Serving:
    """A server that is ready."""

    process: subprocess.Popen[str]
    target: str
    document: dict[str, Any]  # what it printed


def serve_command(base: Path, data_dir: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "loraplex_cli", "serve", "--json", "--base", str(base)]
    return [*command, "--data-dir", str(data_dir), "--kv-cache-bytes", "4194304", *arguments]


def environment() -> dict[str, str]:
    """Without settings of the machine that runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LORAPLEX_")}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_complete_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def serving(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("log") / "stderr"
    command = serve_command(
        base, tmp_path_factory.mktemp("data"), "--port", "0", "--metrics-port", "0", "--device", "cpu"
    )
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()
        ) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, log.read_text()
            document = json.loads(line)
            yield Serving(process, f"127.0.0.1:{document['grpc_port']}", document)
        finally:
            process.terminate()
            process.wait(60)
