from __future__ import annotations

import time

import grpc
import pytest

from loraplex_client import (
    AsyncLoraplexClient,
    Delta,
    Finished,
    InvalidRequestError,
    LoraplexClient,
    OverloadedError,
    Started,
    UnavailableError,
)
from loraplex_client.service_config import MAX_ATTEMPTS, SERVICE_CONFIG
from tests.unit.client.faults import Fault, error_info, retry_info
from tests.unit.client.scripted_server import ScriptedServer

OVERLOADED = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, details=(error_info("QUEUE_FULL"), retry_info(0.05)))
OVERLOADED_FOR_GOOD = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, details=(error_info("UPLOAD_TOO_LARGE"),))
UNAVAILABLE = Fault(grpc.StatusCode.UNAVAILABLE, details=(error_info("ENGINE_UNAVAILABLE"),))


def test_the_service_config_retries_unavailable_alone() -> None:
    policies = [method["retryPolicy"] for method in SERVICE_CONFIG["methodConfig"] if "retryPolicy" in method]

    assert [policy["retryableStatusCodes"] for policy in policies] == [["UNAVAILABLE"]]


def test_what_goes_on_from_where_it_broke_is_not_begun_again_by_the_channel() -> None:
    (without_policy,) = (method for method in SERVICE_CONFIG["methodConfig"] if "retryPolicy" not in method)

    methods = {name["method"] for name in without_policy["name"]}
    assert methods == {"UploadAdapter", "WatchAdapters", "StreamTrainingEvents"}


def test_unavailable_is_retried_by_the_channel(client: LoraplexClient, server: ScriptedServer) -> None:
    server.faults = [UNAVAILABLE] * 2

    assert client.generate("x").text == "hello"
    assert server.num_calls == 3


def test_unavailable_is_given_up_after_the_published_attempts(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.faults = [UNAVAILABLE] * 9

    with pytest.raises(UnavailableError):
        client.generate("x")
    assert server.num_calls == MAX_ATTEMPTS


def test_a_full_queue_is_waited_for_as_long_as_the_server_says(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.faults = [OVERLOADED] * 2
    started_s = time.monotonic()

    assert client.generate("x").text == "hello"
    assert server.num_calls == 3
    assert time.monotonic() - started_s >= 0.1


def test_a_full_queue_is_given_up_after_the_published_attempts(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.faults = [OVERLOADED] * 9

    with pytest.raises(OverloadedError):
        client.generate("x")
    assert server.num_calls == MAX_ATTEMPTS


def test_exhaustion_without_a_delay_is_not_retried(client: LoraplexClient, server: ScriptedServer) -> None:
    server.faults = [OVERLOADED_FOR_GOOD]

    with pytest.raises(OverloadedError):
        client.generate("x")
    assert server.num_calls == 1


def test_a_delay_beyond_the_deadline_is_not_waited_for(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.faults = [
        Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, details=(error_info("QUEUE_FULL"), retry_info(60)))
    ]
    started_s = time.monotonic()

    with pytest.raises(OverloadedError) as caught:
        client.generate("x", timeout_s=30)
    assert caught.value.retry_after_s == 60
    assert server.num_calls == 1
    assert time.monotonic() - started_s < 30


def test_a_bad_request_is_not_retried(client: LoraplexClient, server: ScriptedServer) -> None:
    server.faults = [Fault(grpc.StatusCode.INVALID_ARGUMENT, details=(error_info("X"), retry_info(0)))]

    with pytest.raises(InvalidRequestError):
        client.generate("x")
    assert server.num_calls == 1


def test_a_stream_refused_before_its_first_event_is_opened_again(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.faults = [OVERLOADED, UNAVAILABLE]

    events = list(client.stream("x"))

    assert [type(event) for event in events] == [Started, Delta, Delta, Finished]
    assert server.num_calls == 3


def test_a_stream_that_breaks_after_an_event_is_not_opened_again(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.faults = [
        Fault(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            details=(error_info("WRITE_STALL"), retry_info(0.01)),
            after_events=1,
        )
    ]
    stream = client.stream("x")

    assert isinstance(next(stream), Started)
    with pytest.raises(OverloadedError):
        next(stream)
    assert server.num_calls == 1


async def test_the_async_client_retries_alike(server: ScriptedServer) -> None:
    server.faults = [OVERLOADED, UNAVAILABLE]
    async with AsyncLoraplexClient(server.target, timeout_s=10) as client:
        assert (await client.generate("x")).text == "hello"
        server.faults = [OVERLOADED, UNAVAILABLE]
        events = [event async for event in client.stream("x")]

    assert [type(event) for event in events] == [Started, Delta, Delta, Finished]
    assert server.num_calls == 6
