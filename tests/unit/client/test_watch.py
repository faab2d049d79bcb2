from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from loraplex.v1 import adapter_pb2
from loraplex_client import (
    AdapterEventKind,
    AsyncLoraplexClient,
    InvalidRequestError,
    LoraplexClient,
    ServerUnreachableError,
    UnavailableError,
    watch,
)
from loraplex_client.watch import WatchPosition
from tests.unit.client.faults import Fault, error_info
from tests.unit.client.scripted_adapters import STABLE_DIGEST, event
from tests.unit.client.scripted_server import ScriptedServer


def lost(after_events: int) -> Fault:
    return Fault(grpc.StatusCode.UNAVAILABLE, details=(error_info("DRAINING"),), after_events=after_events)


def test_events_come_in_order_with_their_tokens(client: LoraplexClient, server: ScriptedServer) -> None:
    server.adapters.events = [event(number) for number in range(1, 4)]

    seen = list(client.adapters.watch("tenants/default"))

    assert [(each.name, token) for each, token in seen] == [("a1", "1"), ("a2", "2"), ("a3", "3")]
    first, _ = seen[0]
    assert (first.kind, first.digest, first.alias) == (AdapterEventKind.PROMOTED, STABLE_DIGEST, "stable")
    assert first.aliases == ("stable",)  # also from a server that tells but one
    assert server.adapters.request(adapter_pb2.WatchAdaptersRequest).parent == "tenants/default"


def test_an_event_tells_every_alias_that_moved(client: LoraplexClient, server: ScriptedServer) -> None:
    told = event(1)
    told.event.aliases.extend(["stable", "canary"])
    server.adapters.events = [told]

    ((seen, _),) = client.adapters.watch("tenants/default")

    assert (seen.alias, seen.aliases) == ("stable", ("stable", "canary"))


def test_a_watch_goes_on_behind_the_token_it_is_given(client: LoraplexClient, server: ScriptedServer) -> None:
    server.adapters.events = [event(number) for number in range(1, 4)]

    assert [token for _, token in client.adapters.watch(resume_token="2")] == ["3"]


def test_a_broken_watch_goes_on_behind_its_last_event(client: LoraplexClient, server: ScriptedServer) -> None:
    server.adapters.events = [event(number) for number in range(1, 8)]
    server.adapters.watch_faults = [lost(2), lost(3)]

    tokens = [token for _, token in client.adapters.watch(resume_token="0")]

    assert tokens == [str(number) for number in range(1, 8)]
    assert server.adapters.watch_tokens == ["0", "2", "5"]


async def test_the_async_watch_goes_on_alike(server: ScriptedServer) -> None:
    server.adapters.events = [event(number) for number in range(1, 8)]
    server.adapters.watch_faults = [lost(2), lost(3)]

    async with (
        AsyncLoraplexClient(server.target) as client,
        client.adapters.watch(resume_token="0") as events,
    ):
        tokens = [token async for _, token in events]

    assert tokens == [str(number) for number in range(1, 8)]
    assert server.adapters.watch_tokens == ["0", "2", "5"]


def test_a_refused_watch_is_not_tried_again(client: LoraplexClient, server: ScriptedServer) -> None:
    server.faults = [Fault(grpc.StatusCode.INVALID_ARGUMENT)]

    with pytest.raises(InvalidRequestError):
        next(client.adapters.watch("nonsense/"))
    assert server.num_calls == 1


def test_patience_begins_anew_after_a_call_that_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = SimpleNamespace(now_s=1.0)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr(watch, "time", clock)
    position = WatchPosition("", "", patience_s=60)
    failure = UnavailableError("draining", code=grpc.StatusCode.UNAVAILABLE, reason="DRAINING")

    position.begin_call()
    clock.now_s = 3600.0  # an hour without an event was a watch, not a wait for a server
    assert position.pause_s(failure) is not None
    for clock.now_s in (3610.0, 3620.0, 3659.0):
        position.begin_call()
        assert position.pause_s(failure) is not None
    clock.now_s = 3661.0
    position.begin_call()
    assert position.pause_s(failure) is None


def test_a_server_that_stays_unavailable_is_given_up_after_the_patience(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.faults = [lost(0)] * 1000

    with pytest.raises(UnavailableError):
        next(client.adapters.watch(patience_s=0.5))


async def test_a_server_that_is_not_there_is_given_up_after_the_patience() -> None:
    with LoraplexClient("127.0.0.1:1") as client, pytest.raises(ServerUnreachableError, match=r"0\.2 s"):
        next(client.adapters.watch(patience_s=0.2))
    async with AsyncLoraplexClient("127.0.0.1:1") as async_client:
        with pytest.raises(ServerUnreachableError, match=r"0\.2 s"):
            await anext(async_client.adapters.watch(patience_s=0.2))


def test_leaving_a_watch_ends_it_on_the_server(client: LoraplexClient, server: ScriptedServer) -> None:
    server.adapters.events = [event(number) for number in range(1, 10_000)]

    with client.adapters.watch(resume_token="0") as events:
        next(events)

    assert server.adapters.watch_ended.wait(30)
