"""The registering part of a server, killed often and within its writes: what was acknowledged is there, and whole.

Whole servers are killed in test_killed_servers.py; a life costs seconds there, and most of its time goes to engine and
network. Here nearly every kill comes within a copy, a rename or a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import time
from pathlib import Path

import pytest

from loraplex_adapters.package import read_package
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.store import PackageStore
from loraplex_server.base.fingerprint import base_spec
from tests.integration.server import registering_process
from tests.integration.server.registering_process import open_directory
from tests.integration.tiny_base import save_tiny_adapter

pytestmark = [pytest.mark.slow, pytest.mark.waits, pytest.mark.timeout(900)]

KILLS = 40
MAX_DONE = 3  # writes of a process, before the moment of its kill begins
FIRST_WRITE_S = 0.05  # taken for the length of a write before one was seen
State = dict[str, str]  # name -> digest of "stable"
Word = tuple[str, str, str, str]  # "begin" or "done", what, name, digest or folder

# Each process is forked from one that has imported everything and done nothing: a kill costs no second of imports.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([registering_process.__name__])


def test_acknowledged_registrations_survive_kills_at_any_moment(tiny_base: Path, tmp_path: Path) -> None:
    folders = tmp_path / "folders"
    for number in range(4):
        save_tiny_adapter(tiny_base, folders / f"p{number}", 500 + number, target_modules=["q_proj"])
    digest_of = {folder.name: read_package(folder).digest for folder in folders.iterdir()}
    data = tmp_path / "data"
    data.mkdir()
    choice = random.Random(7)
    state: State = {}

    for kill in range(KILLS):
        words = run_and_kill(data, tiny_base, folders, kill, choice.randint(0, MAX_DONE), choice.random())
        acknowledged = follow(state, [word for word in words if word[0] == "done"])
        possible = [acknowledged]
        if words[-1][0] == "begin":  # under way when the kill came: it took effect or it did not
            _, what, name, folder = words[-1]
            possible.append(follow(acknowledged, [("done", what, name, digest_of.get(folder, ""))]))
        state = registered(data, tiny_base)
        assert state in possible, f"after kill {kill}"
        asyncio.run(sweep(data, tiny_base))
        assert_whole(data, set(digest_of.values()))


def run_and_kill(
    data: Path, base: Path, folders: Path, seed: int, num_done: int, moment: float
) -> list[Word]:
    """What the process said. It is killed within the write behind the first `num_done`, at `moment` of the time that
    the one before took, in [0, 1): on a slow machine too it has done something by then, and has something under way.
    """
    words, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(
        target=registering_process.run, args=(theirs, data, base, sorted(folders.iterdir()), seed)
    )
    process.start()
    theirs.close()
    said: list[Word] = []
    began_s = took_s = 0.0
    while num_done >= 0:
        said.append(words.recv())
        if said[-1][0] == "begin":
            began_s = time.monotonic()
            num_done -= 1
        else:
            took_s = time.monotonic() - began_s
    time.sleep(moment * (took_s or FIRST_WRITE_S))
    process.kill()
    with contextlib.suppress(EOFError), words:
        while True:
            said.append(words.recv())
    process.join()
    return said


def follow(state: State, done: list[Word]) -> State:
    """`state` after what was done."""
    after = dict(state)
    for _, what, name, digest in done:
        if what == "register":
            after[name] = digest
        else:
            after.pop(name, None)
    return after


def registered(data: Path, base: Path) -> State:
    """What a server would find."""
    directory, _ = open_directory(data, base_spec(base))
    try:
        return {str(adapter.name): adapter.stable.digest for adapter in directory.registry.list_page(100)}
    finally:
        directory.registry.close()


async def sweep(data: Path, base: Path) -> None:
    """What a server does when it starts."""
    directory, packages = open_directory(data, base_spec(base))
    sweeping = asyncio.create_task(packages.keep_swept())
    await asyncio.wait_for(packages.swept.wait(), timeout=30)
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
    directory.registry.close()


def assert_whole(data: Path, known: set[str]) -> None:
    """Every version has its package, bit for bit, and no other package is left."""
    store = PackageStore(data / "adapters")
    registry = AdapterRegistry(f"sqlite:///{data / 'registry.sqlite3'}")
    needed = {version.digest for adapter in registry.list_page(100) for version in adapter.versions}
    registry.close()
    assert needed <= known
    assert set(store.digests()) == needed
    for digest in needed:
        assert store.verify(digest).digest == digest
