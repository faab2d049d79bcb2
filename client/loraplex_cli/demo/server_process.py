"""A real server as a child process, on free ports and with a data folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.failures import CommandError

READY_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 30.0
_LOG_LINES_SHOWN = 15


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the child listens."""

    target: str  # host:port of gRPC
    metrics_url: str
    process_id: int


@contextmanager
def running_server(arguments: Sequence[str] = (), kept_log: Path | None = None) -> Iterator[ServerAddress]:
    """`loraplex serve` with `arguments`, ready; stopped by SIGTERM at the end. `kept_log`: where its log shall stay.

    Raises CommandError with the cause if it does not become ready.
    """
    with tempfile.TemporaryDirectory(prefix="loraplex-demo-") as scratch:
        log_file = kept_log or Path(scratch) / "server.log"
        command = [
            sys.executable,
            "-m",
            "loraplex_cli",
            "serve",
            "--json",
            "--port",
            "0",
            "--metrics-port",
            "0",
        ]
        command += ["--host", "127.0.0.1", "--data-dir", str(Path(scratch) / "data"), *arguments]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment()
            )
        try:
            yield _await_ready(process, log_file)
        finally:
            _stop(process)


def _environment() -> dict[str, str]:
    """Without the user's server settings, which are meant for another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LORAPLEX_")}


def _await_ready(process: subprocess.Popen[str], log_file: Path) -> ServerAddress:
    assert process.stdout is not None
    # Killed, the child closes its standard output, which is what readline waits for.
    too_late = threading.Timer(READY_TIMEOUT_S, process.kill)
    too_late.start()
    try:
        line = process.stdout.readline()
    finally:
        too_late.cancel()
    document = json.loads(line) if line else {}
    if "grpc_port" not in document:
        raise _not_ready(document, log_file)
    return ServerAddress(
        target=f"127.0.0.1:{document['grpc_port']}",
        metrics_url=f"http://127.0.0.1:{document['metrics_port']}/metrics",
        process_id=process.pid,
    )


def _not_ready(document: dict[str, Any], log_file: Path) -> CommandError:
    """What the child itself reported; else the end of its log."""
    if "error" in document:
        cause = document["error"]["message"]
    else:
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        cause = "\n".join(["the end of its log:", *lines[-_LOG_LINES_SHOWN:]])
    return CommandError(f"the server did not start: {cause}", ExitCode.FAILURE, "SERVER_NOT_READY")


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
