"""One data folder, and the servers that live on it one after another until each is killed."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from loraplex_adapters.package import read_package
from loraplex_client import LoraplexClient
from tests.integration.live_server import LiveServer, eventually, start_server
from tests.integration.streams import PROMPT
from tests.integration.tiny_base import save_tiny_adapter, save_tiny_base

NUM_PACKAGES = 5
SLOTS = 3  # fewer than packages, so that answers evict
_GONE_WITHIN_S = 60.0
SHORT: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 6, "include_token_ids": True}


class KillFailure(AssertionError):
    """Something that must survive a kill did not."""


@dataclass
class Stage:
    """Base, packages, and where the servers keep what they have."""

    base: Path
    folders: list[Path]  # PEFT folders below `packages`
    packages: Path
    home: Path
    timeout_s: float = 60.0  # of any call
    digests: list[str] = field(default_factory=list)
    answers: list[tuple[int, ...]] = field(default_factory=list)  # token ids of each package's answer
    start_seconds: list[float] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def scratch(self) -> Path:
        """What servers take for the machine's folder of temporary files."""
        return self.home / "tmp"

    @property
    def log_file(self) -> Path:
        return self.home / "server.log"

    def start(self) -> LiveServer:
        """A whole server that may still be loading: `loraplex serve` in a process group of its own."""
        return start_server(
            self.base,
            self.data,
            self.log_file,
            self.scratch,
            adapter_roots=self.packages,
            adapter_slots=SLOTS,
        )

    def start_ready(self) -> LiveServer:
        """One that answers."""
        began_s = time.monotonic()
        server = self.start()
        server.await_ready()
        self.start_seconds.append(time.monotonic() - began_s)
        return server

    def learn(self, client: LoraplexClient) -> None:
        """What each package answers, while nothing is killed."""
        for number, folder in enumerate(self.folders):
            self.digests.append(read_package(folder).digest)
            client.adapters.upload("reference/one", folder, on_existing="promote")
            answer = client.generate(PROMPT, adapter="reference/one", **SHORT)
            self.answers.append(answer.token_ids)
            if answer.adapter_digest != self.digests[number]:
                raise KillFailure(f"package {number} was answered by another digest")
        client.adapters.delete("reference/one")
        if len(set(self.answers)) < len(self.folders):
            raise KillFailure("two packages answer alike; nothing could tell them apart")


@contextmanager
def new_stage(base: Path | None = None) -> Iterator[Stage]:
    """A stage in a folder of short name, for sockets are in it; removed at the end. `base` None: a tiny one."""
    with tempfile.TemporaryDirectory(prefix="lpx-kills-") as scratch:
        home = Path(scratch)
        base = base or save_tiny_base(home / "base")
        packages = home / "packages"
        folders = [
            save_tiny_adapter(base, packages / f"p{number}", 700 + number, r=2 + number)
            for number in range(NUM_PACKAGES)
        ]
        (home / "tmp").mkdir()
        yield Stage(base, folders, packages, home)


def kill(server: LiveServer, choice: random.Random, *, everything: bool) -> None:
    """SIGKILL to the front end alone, or to each of its processes in any order; returns when all are gone.

    Raises KillFailure where a process outlives the front end.
    """
    front_end = psutil.Process(server.process.pid)
    processes = front_end.children(recursive=True)
    doomed = [*processes, front_end] if everything else [front_end]
    choice.shuffle(doomed)
    for process in doomed:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    server.process.wait(_GONE_WITHIN_S)
    if server.process.stdout is not None:
        server.process.stdout.close()
    try:
        eventually(lambda: not any(map(_runs, processes)), _GONE_WITHIN_S)
    except AssertionError:
        raise KillFailure("a process of a killed server goes on") from None


def _runs(process: psutil.Process) -> bool:
    """False for one that has ended and that init has not looked at yet."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
