"""A real `loraplex serve` in a process of its own, on free ports, and what tests do to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from loraplex_client import LoraplexClient

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0
# Small enough for a test, large enough that nothing but a test's own settings is ever short.
SETTINGS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "metrics_port": 0,
    "quantization": "fp32",
    "device": "cpu",
    "num_threads": 1,
    "max_context_tokens": 32_768,
    "max_output_tokens": 20_000,
    "kv_cache_bytes": 32 * 2**20,
    "adapter_arena_bytes": 16 * 2**20,
}
_FLAGS = {
    "adapter_roots": "--adapter-root",
    "adapter_url_prefixes": "--adapter-url-prefix",
    "signature_keys": "--signature-key",
    "training_roots": "--training-root",
}
_IS_THE_ENGINE = "multiprocessing.spawn"


@dataclass
class LiveServer:
    """A server that said it is ready, or is still loading if it was started without waiting."""

    process: subprocess.Popen[str]
    data_dir: Path
    log_file: Path
    target: str = ""
    metrics_url: str = ""

    def client(self, timeout_s: float = 60.0) -> LoraplexClient:
        return LoraplexClient(self.target, timeout_s=timeout_s)

    def await_ready(self) -> None:
        """Read the one line that `serve --json` prints when it can answer."""
        assert self.process.stdout is not None
        too_late = threading.Timer(START_TIMEOUT_S, self.process.kill)
        too_late.start()
        try:
            line = self.process.stdout.readline()
        finally:
            too_late.cancel()
        ready = json.loads(line) if line else {}
        assert "grpc_port" in ready, f"the server did not start: {line}\n{self.log()}"
        self.target = f"127.0.0.1:{ready['grpc_port']}"
        self.metrics_url = f"http://127.0.0.1:{ready['metrics_port']}/metrics"

    def log(self) -> str:
        """All log lines so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def await_log(self, text: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until a log line holds `text`; for moments that nothing else tells of."""
        eventually(lambda: text in self.log(), timeout_s)

    def engine(self) -> psutil.Process:
        """The engine process, once there is one."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = self._engines()
            return bool(found)

        eventually(look)
        return found[0]

    def kill_engine(self) -> None:
        """SIGKILL, as the kernel does when memory is short; returns when the process is gone."""
        engine = self.engine()
        engine.kill()
        psutil.wait_procs([engine], timeout=STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL to the front end; nothing of it gets to clean up."""
        self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def await_exit(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code."""
        return self.process.wait(timeout_s)

    def stop(self) -> None:
        """SIGTERM unless it has ended; then nothing in its log may be a bug's traceback."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the server did not stop:\n{self.log()}") from None
        if self.process.stdout is not None:
            self.process.stdout.close()
        log = self.log()
        assert "Traceback" not in log, log

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name whose labels include `labels`; 0 if there are none."""
        return sum(
            float(sample.value)
            for sample in self.samples()
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def samples(self) -> list[Any]:
        """One scrape: samples with name, labels and value."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as response:
            text = response.read().decode()
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def _engines(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                if _IS_THE_ENGINE in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found


def start_server(
    base: Path | str, data_dir: Path, log_file: Path, scratch: Path | None = None, **settings: Any
) -> LiveServer:
    """Spawn a server with SETTINGS and `settings` (names of ServerConfig) on top; it may still be loading.

    `scratch` is what it takes for the machine's folder of temporary files.
    """
    command = [sys.executable, "-m", "loraplex_cli", "serve", "--json"]
    for name, value in {**SETTINGS, "base": base, "data_dir": data_dir, **settings}.items():
        flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
        if isinstance(value, bool):
            command.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            for each in value if isinstance(value, tuple) else (value,):
                command += [flag, str(each)]
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment() | ({"TMPDIR": str(scratch)} if scratch is not None else {}),
            start_new_session=True,  # a signal to the tests' own process group is not meant for it
        )
    port = settings.get("port", 0)
    return LiveServer(process, data_dir, log_file, target=f"127.0.0.1:{port}" if port else "")


@contextmanager
def running_server(base: Path | str, folder: Path, **settings: Any) -> Iterator[LiveServer]:
    """A ready server with its data below `folder`; stopped, and its log checked, at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    server = start_server(base, folder / "data", folder / "server.log", **settings)
    try:
        server.await_ready()
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A port for a server whose address must be known before it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def environment() -> dict[str, str]:
    """Of a child process: no settings of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LORAPLEX_")}


def eventually(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Until `holds` returns true; AssertionError after `timeout_s`. Only where no event can be awaited."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"still not so after {timeout_s:g} s"
        time.sleep(0.01)


def await_idle(client: LoraplexClient, timeout_s: float = 30.0) -> None:
    """Until the server says that no sequence waits or runs and no block is held."""

    def is_idle() -> bool:
        load = client.server_info().load
        return (load.running, load.waiting, load.kv_blocks_used) == (0, 0, 0)

    eventually(is_idle, timeout_s)
