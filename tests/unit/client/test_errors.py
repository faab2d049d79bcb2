from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2

from loraplex_client import (
    AlreadyExistsError,
    ConflictError,
    DeadlineError,
    EventsExpiredError,
    FieldViolation,
    InvalidRequestError,
    LoraplexApiError,
    LoraplexClient,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    ServerFaultError,
    ServerUnreachableError,
    UnavailableError,
)
from tests.unit.client.faults import Fault, error_info, retry_info
from tests.unit.client.scripted_server import ScriptedServer

CODES = [
    (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
    (grpc.StatusCode.OUT_OF_RANGE, InvalidRequestError),
    (grpc.StatusCode.NOT_FOUND, NotFoundError),
    (grpc.StatusCode.ALREADY_EXISTS, AlreadyExistsError),
    (grpc.StatusCode.ABORTED, ConflictError),
    (grpc.StatusCode.FAILED_PRECONDITION, PreconditionError),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
    (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineError),
    (grpc.StatusCode.INTERNAL, ServerFaultError),
    (grpc.StatusCode.UNIMPLEMENTED, ServerFaultError),
]


@pytest.mark.parametrize(("code", "kind"), CODES)
def test_each_status_has_its_error(
    client: LoraplexClient, server: ScriptedServer, code: grpc.StatusCode, kind: type[LoraplexApiError]
) -> None:
    server.faults = [Fault(code, "told", (error_info("SOME_REASON"),))]

    with pytest.raises(kind) as caught:
        client.generate("x")

    assert (caught.value.code, caught.value.reason, caught.value.message) == (code, "SOME_REASON", "told")


def test_the_details_of_a_refusal_are_read(client: LoraplexClient, server: ScriptedServer) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="sampling.top_p", description="is 7")
    server.faults = [
        Fault(
            grpc.StatusCode.INVALID_ARGUMENT,
            details=(
                error_info("INVALID_REQUEST"),
                error_details_pb2.RequestInfo(request_id="abc"),
                error_details_pb2.BadRequest(field_violations=[violation]),
                retry_info(1.25),
                error_details_pb2.DebugInfo(detail="unknown to the client"),
            ),
        )
    ]

    with pytest.raises(InvalidRequestError) as caught:
        client.generate("x")

    assert caught.value.request_id == "abc"
    assert caught.value.violations == (FieldViolation("sampling.top_p", "is 7"),)
    assert caught.value.retry_after_s == 1.25


def test_a_watch_token_too_old_has_an_error_of_its_own(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.faults = [Fault(grpc.StatusCode.OUT_OF_RANGE, details=(error_info("EVENTS_EXPIRED"),))]

    with pytest.raises(EventsExpiredError):
        next(client.adapters.watch(resume_token="3"))


def test_a_quota_that_is_used_up_is_told_in_the_message(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    quota = error_details_pb2.QuotaFailure(
        violations=[
            error_details_pb2.QuotaFailure.Violation(subject="store", description="9 of 9 GiB are in use")
        ]
    )
    server.faults = [
        Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much", (error_info("QUOTA_EXCEEDED"), quota)),
        Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much: 9 of 9 GiB are in use", (quota,)),
    ]

    for message in ("too much; 9 of 9 GiB are in use", "too much: 9 of 9 GiB are in use"):
        with pytest.raises(OverloadedError) as caught:
            client.adapters.create("shop", "/shop")
        assert caught.value.message == message


def test_a_message_that_is_too_large_is_told_with_the_limit(client: LoraplexClient) -> None:
    with pytest.raises(OverloadedError, match=r"may hold 8 MiB.*shorter prompt"):
        client.generate("x" * 9_000_000)


def test_a_port_where_nothing_listens_is_unreachable() -> None:
    with LoraplexClient("127.0.0.1:1", timeout_s=5) as client, pytest.raises(ServerUnreachableError):
        client.generate("x")


def test_a_server_that_says_unavailable_was_reached(client: LoraplexClient, server: ScriptedServer) -> None:
    server.faults = [Fault(grpc.StatusCode.UNAVAILABLE, details=(error_info("DRAINING"),))] * 4

    with pytest.raises(UnavailableError) as caught:
        client.generate("x")

    assert not isinstance(caught.value, ServerUnreachableError)
    assert caught.value.reason == "DRAINING"
