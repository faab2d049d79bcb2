"""The disk or the registry's database fails under a running server."""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import psutil
import pytest

from loraplex_client import LoraplexClient, NotFoundError, UnavailableError
from tests.integration.conftest import StartServer
from tests.integration.live_server import LiveServer, eventually
from tests.integration.streams import ENDLESS, GREEDY, PROMPT


def limit_file_size(server: LiveServer, num_bytes: int) -> None:
    """Writing a file beyond this fails, as on a full disk: for the front end and for what checks packages."""
    front_end = psutil.Process(server.process.pid)
    checkers = [child for child in front_end.children() if "admission" in " ".join(child.cmdline())]
    assert checkers
    for process in (front_end, *checkers):
        _, hard = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (num_bytes if hard < 0 else min(num_bytes, hard), hard))


def test_a_full_disk_refuses_registrations_and_leaves_nothing_half_registered(
    own_server: StartServer, packages: Path
) -> None:
    server = own_server()
    with server.client() as client, client.stream(PROMPT, adapter="green", **ENDLESS) as bystander:
        next(bystander)
        client.adapters.delete("red")
        eventually(lambda: len(os.listdir(server.data_dir / "adapters")) == 3)  # two packages and the lock
        limit_file_size(server, 8_000)

        # Without an id the client does not go on with an upload that broke off, for half a minute.
        ways: tuple[Callable[[str, Path], object], ...] = (
            client.adapters.create,
            partial(client.adapters.upload, upload_id=""),
        )
        for register in ways:
            with pytest.raises(UnavailableError) as caught:
                register("red", packages / "red")
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
            assert caught.value.reason == "STORAGE_UNAVAILABLE"
            assert str(server.data_dir) not in caught.value.message
        with pytest.raises(NotFoundError):
            client.adapters.get("red")
        eventually(lambda: len(os.listdir(server.data_dir / "adapters")) == 3)
        next(bystander)

        limit_file_size(server, 2**40)
        client.adapters.upload("red", packages / "red")
        assert client.generate(PROMPT, adapter="red", **GREEDY).usage.completion_tokens == 24


def test_a_broken_registry_refuses_changes_and_what_is_registered_still_answers(
    own_server: StartServer, packages: Path
) -> None:
    server = own_server()
    database = sqlite3.connect(server.data_dir / "registry.sqlite3")
    database.execute("drop table adapters")
    database.close()
    with server.client() as client:
        for change in (_register, _delete):
            with pytest.raises(UnavailableError) as caught:
                change(client, packages)
            assert caught.value.reason == "STORAGE_UNAVAILABLE"
            assert "sql" not in caught.value.message.lower()
            assert caught.value.retry_after_s is not None

        assert client.generate(PROMPT, adapter="red", **GREEDY).usage.completion_tokens == 24
        with pytest.raises(UnavailableError):  # nobody can say whether it is there
            client.adapters.get("new")
    assert "no such table" in server.log()  # the cause is for the operator


def _register(client: LoraplexClient, packages: Path) -> None:
    client.adapters.create("new", packages / "red")


def _delete(client: LoraplexClient, packages: Path) -> None:
    client.adapters.delete("red")
