"""Two servers on one registry: what is done on one is served by the other, and a lost database stops changes alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_client import LoraplexClient, NotFoundError, UnavailableError
from tests.integration.conftest import NewAdapter
from tests.integration.live_server import LiveServer, eventually, running_server
from tests.integration.raw_calls import failure_of, raw_channel
from tests.integration.streams import ENDLESS, GREEDY, PROMPT
from tests.support.postgres import PostgresServer, running_postgres

pytestmark = pytest.mark.timeout(600)

CONVERGED_S = (
    20.0  # until it is a failure; how long it takes is measured by `python -m benchmarks.convergence`
)
REFUSED_S, SLACK_S = 10.0, 15.0  # what docs/releases.md states, and for a machine that others load
NUM_AT_ONCE = 8  # more than would be refused in both together, if each waited for itself


@dataclass(frozen=True)
class Pair:
    """Two servers, one database, one home of packages."""

    servers: tuple[LiveServer, LiveServer]
    clients: tuple[LoraplexClient, LoraplexClient]
    database: PostgresServer


@pytest.fixture(scope="module")
def pair(tiny_base: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with ExitStack() as stack:
        database = stack.enter_context(running_postgres())
        settings = {
            "registry_url": database.new_database(),
            "package_url": (folder / "home").as_uri(),
            "adapter_roots": packages,
        }
        servers = [
            stack.enter_context(running_server(tiny_base, folder / name, **settings)) for name in ("a", "b")
        ]
        clients = [stack.enter_context(server.client()) for server in servers]
        yield Pair((servers[0], servers[1]), (clients[0], clients[1]), database)


def digest_served(client: LoraplexClient, adapter: str) -> str:
    """Empty where the name is unknown."""
    try:
        return client.generate(PROMPT, adapter=adapter, **GREEDY).adapter_digest
    except NotFoundError:
        return ""


def test_what_one_server_registers_promotes_and_deletes_the_other_serves(
    pair: Pair, new_adapter: NewAdapter
) -> None:
    """vLLM #12174: what was loaded at run time reached one replica."""
    first, second = pair.clients
    old = first.adapters.upload("both/shop", new_adapter("shop-old"))
    assert digest_served(second, "both/shop") == old.digest  # fetched from the shared home

    new = second.adapters.upload("both/shop", new_adapter("shop-new"), on_existing="add_version")
    assert digest_served(first, f"both/shop@{new.digest[:12]}") in ("", new.digest)
    second.adapters.promote("both/shop", new.digest)
    assert digest_served(second, "both/shop") == new.digest  # at once where it was done

    eventually(lambda: digest_served(first, "both/shop") == new.digest, CONVERGED_S)

    first.adapters.rollback("both/shop")
    eventually(lambda: digest_served(second, "both/shop") == old.digest, CONVERGED_S)
    first.adapters.delete("both/shop")
    eventually(lambda: digest_served(second, "both/shop") == "", CONVERGED_S)


def test_a_watch_on_one_server_sees_what_is_done_on_the_other(pair: Pair, new_adapter: NewAdapter) -> None:
    first, second = pair.clients
    events = second.adapters.watch(parent="watched/name", resume_token="0")
    registered = first.adapters.upload("watched/name", new_adapter("watched"))
    first.adapters.delete("watched/name")

    seen = [event for event, _ in itertools.islice(events, 2)]

    assert [event.kind.value for event in seen] == ["registered", "deleted"]
    assert seen[0].digest == registered.digest


def test_a_lost_database_refuses_changes_while_known_adapters_are_served(
    pair: Pair, new_adapter: NewAdapter
) -> None:
    first, _ = pair.clients
    folder = new_adapter("unlucky")
    known = first.adapters.upload("kept", new_adapter("kept"))
    assert digest_served(first, "kept") == known.digest
    stream = first.stream(PROMPT, adapter="kept", **ENDLESS)
    next(stream)
    pair.database.stop()
    try:
        for change in (
            lambda: first.adapters.promote("kept", known.digest, alias="canary"),
            lambda: first.adapters.upload("unlucky", folder, upload_id=""),  # is not tried for half a minute
            lambda: first.adapters.delete("kept"),
            lambda: first.adapters.get("never-asked-for"),
        ):
            with pytest.raises(UnavailableError) as caught:
                change()
            assert caught.value.reason == "STORAGE_UNAVAILABLE"
        assert digest_served(first, "kept") == known.digest
        next(stream)
    finally:
        pair.database.start()
        stream.cancel()

    eventually(lambda: is_changeable(first, "kept"), 60)
    assert first.adapters.get("kept").aliases["canary"] == known.digest
    first.adapters.delete("kept")


def test_a_silent_database_refuses_many_changes_at_once_within_the_stated_time(
    pair: Pair, new_adapter: NewAdapter
) -> None:
    """One after another, each of them would wait for an answer anew."""
    first, _ = pair.clients
    first.adapters.upload("silent", new_adapter("silent"))
    pair.database.suspend()
    began_s = time.monotonic()
    try:
        with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
            refusals = list(threads.map(lambda _: refusal(pair.servers[0]), range(NUM_AT_ONCE)))
        took_s = time.monotonic() - began_s
    finally:
        pair.database.resume()

    assert refusals == ["STORAGE_UNAVAILABLE"] * NUM_AT_ONCE
    assert took_s < REFUSED_S + SLACK_S
    eventually(lambda: is_changeable(first, "silent"), 60)


def refusal(server: LiveServer) -> str:
    """Why a change was refused, sent once; grpc would repeat it."""
    request = adapter_pb2.PromoteVersionRequest(name="silent", version="stable", alias="canary")
    with raw_channel(server) as channel:
        stub = adapter_pb2_grpc.AdapterServiceStub(channel)
        return failure_of(lambda: stub.PromoteVersion(request)).reason


def is_changeable(client: LoraplexClient, name: str) -> bool:
    """Whether changes are taken again."""
    try:
        client.adapters.promote(name, "stable", alias="canary")
    except UnavailableError:
        return False
    return True
