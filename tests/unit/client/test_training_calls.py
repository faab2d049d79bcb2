"""Both clients say the same of training jobs, and follow a job's events over broken connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from loraplex.v1 import training_pb2
from loraplex_client import (
    AsyncLoraplexClient,
    EventsExpiredError,
    LoraplexClient,
    TrainingEventKind,
    TrainingJobState,
    TrainingVerdict,
    UnavailableError,
    training_decode,
)
from tests.unit.client.faults import Fault, error_info
from tests.unit.client.scripted_server import ScriptedServer
from tests.unit.client.scripted_training import NAME, job

BROKEN = Fault(grpc.StatusCode.UNAVAILABLE, details=(error_info("DRAINING"),))
CALLS: dict[str, tuple[Callable[[Any], Any], Message]] = {
    "create": (
        lambda calls: calls.create("name: faq", "team", files={"b": b"2", "a": b"1"}, request_id="r"),
        training_pb2.CreateTrainingJobRequest(
            parent="tenants/team",
            recipe="name: faq",
            files=[
                training_pb2.TrainingFile(name="a", content=b"1"),
                training_pb2.TrainingFile(name="b", content=b"2"),
            ],
            request_id="r",
        ),
    ),
    "get": (lambda calls: calls.get(NAME), training_pb2.GetTrainingJobRequest(name=NAME)),
    "cancel": (
        lambda calls: calls.cancel(NAME, etag="7"),
        training_pb2.CancelTrainingJobRequest(name=NAME, etag="7"),
    ),
    "resume": (
        lambda calls: calls.resume(NAME, etag="7"),
        training_pb2.ResumeTrainingJobRequest(name=NAME, etag="7"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_says_the_same_from_both_clients_and_returns_the_job(
    name: str, client: LoraplexClient, server: ScriptedServer
) -> None:
    call, request = CALLS[name]

    told = call(client.training)
    async with AsyncLoraplexClient(server.target) as async_client:
        told_async = await call(async_client.training)

    assert server.training.requests == [request, request]
    assert told == told_async == training_decode.job(job(server.training))
    assert told.state is TrainingJobState.SUCCEEDED
    assert told.verdict is TrainingVerdict.PASS
    assert told.progress.loss == 0.5
    assert told.progress.eta_seconds is None
    assert told.start_time is None


def test_a_job_that_is_asked_for_again_has_the_id_of_the_first_time(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.faults = [Fault(grpc.StatusCode.UNAVAILABLE, details=(error_info("STORAGE_UNAVAILABLE"),))]

    client.training.create("name: faq")

    first, again = (request.request_id for request in server.training.requests)  # type: ignore[attr-defined]
    assert first == again
    assert first


async def test_lists_are_read_page_by_page(client: LoraplexClient, server: ScriptedServer) -> None:
    server.training.num_listed = 5

    names = [one.name for one in client.training.list("tenants/team", page_size=2)]
    async with AsyncLoraplexClient(server.target) as async_client:
        again = [one.name async for one in async_client.training.list("tenants/team", page_size=2)]

    assert len(set(names)) == 5
    assert names == again
    assert len(server.training.requests) == 6


async def test_events_go_on_behind_the_last_one_where_the_connection_breaks(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.training.event_faults = [BROKEN, BROKEN]
    with client.training.events(NAME) as events:
        told = list(events)
    server.training.event_faults = [BROKEN]
    async with (
        AsyncLoraplexClient(server.target) as async_client,
        async_client.training.events(NAME, 1) as later,
    ):
        told_later = [event async for event in later]

    assert [event.sequence for event in told] == [1, 2, 3, 4, 5]
    assert told[1:] == told_later
    assert told[0].kind is TrainingEventKind.STEP
    assert server.training.followed_after == [0, 2, 4, 1, 3]


def test_a_server_that_does_not_come_back_is_given_up(client: LoraplexClient, server: ScriptedServer) -> None:
    server.training.event_faults = [BROKEN]

    with client.training.events(NAME, patience_s=0) as events:
        told = [next(events), next(events)]
        with pytest.raises(UnavailableError):
            next(events)

    assert [event.sequence for event in told] == [1, 2]


def test_events_that_are_gone_are_told(client: LoraplexClient, server: ScriptedServer) -> None:
    gone = Fault(grpc.StatusCode.OUT_OF_RANGE, details=(error_info("EVENTS_EXPIRED"),))
    server.training.event_faults = [gone]

    with pytest.raises(EventsExpiredError), client.training.events(NAME) as events:
        list(events)


def test_what_a_newer_server_says_is_unknown_and_no_fault() -> None:
    message = training_pb2.TrainingJob(name=NAME)
    message.MergeFromString(training_pb2.TrainingJob(state=99, verdict=99).SerializeToString())  # type: ignore[arg-type]

    told = training_decode.job(message)

    assert told.state is TrainingJobState.UNKNOWN
    assert told.verdict is TrainingVerdict.UNKNOWN
