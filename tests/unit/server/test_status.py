"""Every error has its status; a status says what to do, and fits where it must travel."""

from __future__ import annotations

import inspect
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st

import loraplex_adapters.errors
import loraplex_server.errors
from loraplex_adapters.errors import (
    AdapterIncompatibleError,
    AdapterInvalidError,
    AdapterNotFoundError,
    FieldViolation,
    InvalidRequestError,
    LoraplexError,
    QuotaExceededError,
)
from loraplex_server.config import ConfigError
from loraplex_server.errors import (
    BaseModelInvalidError,
    DataDirInUseError,
    EngineRestartedError,
    EngineUnavailableError,
    KernelError,
    PortInUseError,
    QueueFullError,
)
from loraplex_server.rpc.status import (
    STATUS_OF,
    internal_status,
    malformed_status,
    rich_status,
    status_code,
)

CLIENT_METADATA_BYTES = 8 * 1024  # what a gRPC client accepts by default
NEVER_ANSWERED = {
    DataDirInUseError,
    PortInUseError,
    KernelError,
    ConfigError,
}  # they end the server or the engine before it serves


def error_classes() -> list[type[LoraplexError]]:
    modules = (loraplex_adapters.errors, loraplex_server.errors)
    return [
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, LoraplexError) and value.__module__ == module.__name__
    ]


def leaves() -> list[type[LoraplexError]]:
    return [error for error in error_classes() if not error.__subclasses__()]


def status_of(error: LoraplexError) -> tuple[Any, dict[str, Any]]:
    """The status as a client reads it, and its details by type."""
    packed = rich_status(error, "request-7")
    return packed, details_of(packed)


def details_of(packed: Any) -> dict[str, Any]:
    [(key, value)] = packed.trailing_metadata
    assert key == "grpc-status-details-bin"
    status = status_pb2.Status.FromString(value)
    assert (status.code, status.message) == (packed.code.value[0], packed.details)
    kinds: tuple[type[Message], ...] = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.RequestInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
        error_details_pb2.QuotaFailure,
    )
    found: dict[str, Any] = {}
    for entry in status.details:
        [kind] = [kind for kind in kinds if entry.Is(kind.DESCRIPTOR)]
        message = kind()
        entry.Unpack(message)
        found[kind.__name__] = message
    return found


def wire_bytes(packed: Any) -> int:
    """Of the trailers: a status's text percent-encoded, its details in base64."""
    text = sum(1 if 32 <= byte < 127 and byte != 37 else 3 for byte in packed.details.encode())
    [(_, value)] = packed.trailing_metadata
    return text + -(-len(value) * 4 // 3) + 100


@pytest.mark.parametrize("error", leaves(), ids=lambda error: error.__name__)
def test_every_error_of_the_tree_has_a_status_of_its_own(error: type[LoraplexError]) -> None:
    if error in NEVER_ANSWERED:
        return
    assert any(ancestor in STATUS_OF for ancestor in error.__mro__)


def test_no_error_becomes_unknown_or_ok() -> None:
    codes = {status_code(make(error)) for error in error_classes()}
    assert not codes & {grpc.StatusCode.UNKNOWN, grpc.StatusCode.OK}


def make(error: type[LoraplexError]) -> LoraplexError:
    if error is InvalidRequestError:
        return InvalidRequestError([FieldViolation("prompt", "must not be empty")])
    if error is QueueFullError:
        return QueueFullError("full", 2.5)
    if error is QuotaExceededError:
        return QuotaExceededError("has too much", "tenants/a")
    return error("something to do")


def test_the_table_names_no_error_twice_through_its_ancestors_in_vain() -> None:
    for error, code in STATUS_OF.items():
        inherited = [STATUS_OF[parent] for parent in error.__mro__[1:] if parent in STATUS_OF]
        assert code not in inherited[:1], f"{error.__name__} has this status already"


def test_reasons_are_distinct_stable_codes() -> None:
    reasons = [error.reason for error in error_classes()]
    assert len(set(reasons)) == len(reasons)
    assert all(reason == reason.upper() and " " not in reason for reason in reasons)


def test_a_subclass_without_an_entry_takes_its_ancestors() -> None:
    class NewNotFoundError(AdapterNotFoundError):
        """Not in the table."""

    assert status_code(NewNotFoundError("gone")) is grpc.StatusCode.NOT_FOUND


def test_an_error_outside_of_every_branch_is_internal() -> None:
    assert status_code(LoraplexError("bare")) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_a_status_carries_reason_request_and_message(error: type[LoraplexError]) -> None:
    raised = make(error)

    packed, details = status_of(raised)

    assert packed.code is status_code(raised)
    assert packed.details == str(raised)
    assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == (error.reason, "loraplex")
    assert details["RequestInfo"].request_id == "request-7"
    assert ("BadRequest" in details) == (error is InvalidRequestError)


def test_an_invalid_request_lists_every_violation() -> None:
    violations = [FieldViolation(f"field_{index}", f"must be {index}") for index in range(20)]

    _, details = status_of(InvalidRequestError(violations))

    listed = details["BadRequest"].field_violations
    assert [(entry.field, entry.description) for entry in listed] == [
        (violation.field, violation.description) for violation in violations
    ]


def test_a_full_queue_says_when_to_come_back() -> None:
    _, details = status_of(QueueFullError("full", 2.25))
    assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == 2.25


@pytest.mark.parametrize("error", [EngineUnavailableError, EngineRestartedError, BaseModelInvalidError])
def test_what_is_unavailable_for_a_moment_says_so(error: type[LoraplexError]) -> None:
    packed, details = status_of(error("again"))
    assert packed.code is grpc.StatusCode.UNAVAILABLE
    assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0


@pytest.mark.parametrize("error", [AdapterNotFoundError("x"), InvalidRequestError([]), LoraplexError("bug")])
def test_what_will_not_succeed_again_does_not_ask_for_a_retry(error: LoraplexError) -> None:
    assert "RetryInfo" not in status_of(error)[1]


def test_a_bug_of_ours_shows_a_reference_and_nothing_else() -> None:
    packed = internal_status("request-7")
    assert packed.code is grpc.StatusCode.INTERNAL
    assert packed.details == "internal error; report request id request-7"
    assert details_of(packed)["ErrorInfo"].reason == "INTERNAL"


def test_bytes_that_are_no_message_are_an_invalid_argument() -> None:
    packed = malformed_status("request-7")
    assert packed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(packed)["ErrorInfo"].reason == "MALFORMED_MESSAGE"


TEXTS = st.text(max_size=50) | st.sampled_from(
    ["x" * 9000, "中" * 3000, "%" * 3000, "\ud800" * 10, "😀" * 2000]
)


def test_a_package_whose_configuration_is_at_fault_names_the_field() -> None:
    _, details = status_of(AdapterInvalidError("r must be positive", "r"))

    [violation] = details["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("r", "r must be positive")


def test_a_used_up_quota_says_whose_and_which() -> None:
    _, details = status_of(QuotaExceededError("has 2 adapters, as many as it may", "tenants/a"))

    [violation] = details["QuotaFailure"].violations
    assert (violation.subject, violation.description) == ("tenants/a", "has 2 adapters, as many as it may")
    assert "RetryInfo" not in details


@settings(deadline=None)
@given(text=TEXTS)
def test_a_status_fits_into_the_trailers_whatever_the_message_is(text: str) -> None:
    packed, _ = status_of(AdapterIncompatibleError(text))

    assert wire_bytes(packed) < CLIENT_METADATA_BYTES
    if len(text) <= 50:
        assert packed.details == text.encode("utf-8", "replace").decode()


@settings(deadline=None)
@example([FieldViolation("x" * 9000, "y" * 9000)] * 60)
@example([FieldViolation("", "")] * 9000)
@given(violations=st.lists(st.builds(FieldViolation, TEXTS, TEXTS), max_size=60))
def test_a_status_fits_into_the_trailers_whatever_the_violations_are(
    violations: list[FieldViolation],
) -> None:
    packed, _ = status_of(InvalidRequestError(violations))

    assert wire_bytes(packed) < CLIENT_METADATA_BYTES
