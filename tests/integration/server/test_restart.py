"""What was registered is there after a restart. For servers that are killed: test_killed_servers.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loraplex_client import NotFoundError, PreconditionError
from tests.integration.conftest import ADAPTERS, register_all
from tests.integration.live_server import LiveServer, eventually, running_server
from tests.integration.streams import ENDLESS, GREEDY, PROMPT
from tests.integration.tiny_base import save_tiny_base


def test_registered_adapters_answer_as_before_after_a_restart(
    tiny_base: Path, packages: Path, tmp_path: Path
) -> None:
    """vLLM #12174: what was loaded at run time did not survive a restart."""
    with running_server(tiny_base, tmp_path) as server:
        register_all(server, packages)
        with server.client() as client:
            client.adapters.delete("blue")
            before = {name: client.generate(PROMPT, adapter=name, **GREEDY) for name in ("red", "green")}
            listed = [(a.name, a.digest, a.create_time) for a in client.adapters.list()]
            stream = client.stream(PROMPT, adapter="red", **ENDLESS)
            next(stream)
            stream.cancel()
        server.process.terminate()
        assert server.await_exit() == 0
    with running_server(tiny_base, tmp_path) as server, server.client() as client:
        assert [(a.name, a.digest, a.create_time) for a in client.adapters.list()] == listed
        for name, answer in before.items():
            assert client.generate(PROMPT, adapter=name, **GREEDY).token_ids == answer.token_ids
        with pytest.raises(NotFoundError):
            client.generate(PROMPT, adapter="blue")
        client.adapters.delete("red")  # one that this process did not register itself
        eventually(lambda: len(stored_packages(server)) == 1)


def test_packages_that_nobody_names_any_more_are_removed_at_the_next_start(
    tiny_base: Path, packages: Path, tmp_path: Path
) -> None:
    with running_server(tiny_base, tmp_path) as server:
        register_all(server, packages)
        with server.client() as client, client.stream(PROMPT, adapter="red", **ENDLESS) as stream:
            next(stream)
            client.adapters.delete("red")  # kept for the stream; the kill comes before its end
            assert len(stored_packages(server)) == 3
            server.kill()
    with running_server(tiny_base, tmp_path) as server:
        eventually(lambda: len(stored_packages(server)) == 2)


@pytest.mark.slow
def test_adapters_of_another_base_are_kept_but_never_served_on_this_one(
    tiny_base: Path, packages: Path, tmp_path: Path
) -> None:
    with running_server(tiny_base, tmp_path) as server:
        register_all(server, packages)
    other_base = save_tiny_base(tmp_path / "other-base", seed=1)

    with running_server(other_base, tmp_path) as server, server.client() as client:
        assert [adapter.name for adapter in client.adapters.list()] == sorted(ADAPTERS)
        with pytest.raises(PreconditionError) as caught:
            client.generate(PROMPT, adapter="red", **GREEDY)
        assert caught.value.reason == "BASE_MISMATCH"
        assert client.generate(PROMPT, **GREEDY).usage.completion_tokens == 24


def stored_packages(server: LiveServer) -> set[str]:
    """Digests in the package store."""
    return {name for name in os.listdir(server.data_dir / "adapters") if not name.startswith(".")}
