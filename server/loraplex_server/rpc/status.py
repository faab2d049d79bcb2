"""The public contract of failures: which error is which gRPC status, and what details it carries.

UNKNOWN never leaves the server. `docs/errors.md` shows this table to users.
"""

from __future__ import annotations

import math

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from loraplex_adapters.errors import (
    AdapterExistsError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    AdapterNotFoundError,
    AdapterTooLargeError,
    AdapterUnavailableError,
    AliasInUseError,
    EtagMismatchError,
    EventsExpiredError,
    FieldViolation,
    InvalidRequestError,
    LoraplexError,
    NoEffectError,
    NothingToRollBackError,
    QuotaExceededError,
    RequestIdReusedError,
    SignatureError,
    SourceUnavailableError,
    StorageError,
    TooManyPinnedError,
    TooManyVersionsError,
    UploadBusyError,
    UploadMismatchError,
    VersionDeprecatedError,
    VersionInUseError,
)
from loraplex_server.errors import (
    BaseModelError,
    ContextOverflowError,
    DeadlineExceededError,
    DrainingError,
    EngineRestartedError,
    EngineUnavailableError,
    QueueFullError,
    SequenceFailedError,
    TrainerMissingError,
    TrainingDisabledError,
    TrainingJobElsewhereError,
    TrainingJobNotFoundError,
    TrainingJobStateError,
    UploadTooLargeError,
    WriteStallError,
)

DOMAIN = "loraplex"
_RETRY_AFTER_RESTART_S = 1.0
# A status travels in the response's trailers, of which clients accept 8 KiB in all. Message and violations both hold
# the text of an InvalidRequestError, and the message goes twice.
_MAX_MESSAGE_BYTES = 1000
_MAX_MESSAGE_BESIDE_VIOLATIONS_BYTES = 400
_MAX_FIELD_BYTES, _MAX_DESCRIPTION_BYTES, _MAX_VIOLATIONS_BYTES = 100, 500, 4000

STATUS_OF: dict[type[LoraplexError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ContextOverflowError: grpc.StatusCode.OUT_OF_RANGE,
    AdapterInvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    AdapterNotFoundError: grpc.StatusCode.NOT_FOUND,
    AdapterExistsError: grpc.StatusCode.ALREADY_EXISTS,
    AdapterIncompatibleError: grpc.StatusCode.FAILED_PRECONDITION,
    AdapterTooLargeError: grpc.StatusCode.FAILED_PRECONDITION,
    AdapterUnavailableError: grpc.StatusCode.FAILED_PRECONDITION,
    NoEffectError: grpc.StatusCode.FAILED_PRECONDITION,
    SourceUnavailableError: grpc.StatusCode.FAILED_PRECONDITION,
    SignatureError: grpc.StatusCode.FAILED_PRECONDITION,
    AliasInUseError: grpc.StatusCode.FAILED_PRECONDITION,
    VersionInUseError: grpc.StatusCode.FAILED_PRECONDITION,
    VersionDeprecatedError: grpc.StatusCode.FAILED_PRECONDITION,
    NothingToRollBackError: grpc.StatusCode.FAILED_PRECONDITION,
    TooManyPinnedError: grpc.StatusCode.FAILED_PRECONDITION,
    TooManyVersionsError: grpc.StatusCode.FAILED_PRECONDITION,
    UploadMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    TrainingDisabledError: grpc.StatusCode.FAILED_PRECONDITION,
    TrainerMissingError: grpc.StatusCode.FAILED_PRECONDITION,
    TrainingJobStateError: grpc.StatusCode.FAILED_PRECONDITION,
    TrainingJobElsewhereError: grpc.StatusCode.FAILED_PRECONDITION,
    TrainingJobNotFoundError: grpc.StatusCode.NOT_FOUND,
    RequestIdReusedError: grpc.StatusCode.ALREADY_EXISTS,
    EtagMismatchError: grpc.StatusCode.ABORTED,
    UploadBusyError: grpc.StatusCode.ABORTED,
    EventsExpiredError: grpc.StatusCode.OUT_OF_RANGE,
    QuotaExceededError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UploadTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    WriteStallError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    DrainingError: grpc.StatusCode.UNAVAILABLE,
    EngineUnavailableError: grpc.StatusCode.UNAVAILABLE,
    EngineRestartedError: grpc.StatusCode.UNAVAILABLE,
    StorageError: grpc.StatusCode.UNAVAILABLE,
    BaseModelError: grpc.StatusCode.UNAVAILABLE,
    SequenceFailedError: grpc.StatusCode.INTERNAL,
}
"""Every error a caller can meet; a subclass takes its nearest ancestor's status."""


def status_code(error: LoraplexError) -> grpc.StatusCode:
    """The nearest ancestor's entry; INTERNAL for a branch that has none."""
    for ancestor in type(error).__mro__:
        if ancestor in STATUS_OF:
            return STATUS_OF[ancestor]
    return grpc.StatusCode.INTERNAL


def rich_status(error: LoraplexError, request_id: str) -> grpc.Status:
    """Status with google.rpc details, for `abort_with_status`."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    budget = _MAX_MESSAGE_BYTES
    violations = _violations_of(error)
    if violations is not None:
        budget = _MAX_MESSAGE_BESIDE_VIOLATIONS_BYTES
        details.append(_bad_request(violations))
    if isinstance(error, QuotaExceededError):
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=error.subject, description=error.description
        )
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    retry_s = _retry_after_s(error)
    if retry_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(retry_s)))
    return _status(status_code(error), _shortened(str(error), budget), details)


def internal_status(request_id: str) -> grpc.Status:
    """For a bug of ours: a reference into the log, and nothing of the exception."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    return _status(grpc.StatusCode.INTERNAL, f"internal error; report request id {request_id}", details)


def malformed_status(request_id: str) -> grpc.Status:
    """For bytes that are not the method's request message."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason="MALFORMED_MESSAGE", domain=DOMAIN),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    return _status(
        grpc.StatusCode.INVALID_ARGUMENT,
        "the message is not a valid encoding of this method's request",
        details,
    )


def _retry_after_s(error: LoraplexError) -> float | None:
    """When the same request may succeed; None if it will not."""
    if isinstance(error, QueueFullError):
        return error.retry_after_s
    if status_code(error) is grpc.StatusCode.UNAVAILABLE:
        return _RETRY_AFTER_RESTART_S
    return None


def _violations_of(error: LoraplexError) -> list[FieldViolation] | None:
    """None for an error that is not about fields."""
    if isinstance(error, InvalidRequestError):
        return error.violations
    if isinstance(error, AdapterInvalidError) and error.field:
        return [FieldViolation(error.field, str(error))]
    return None


def _bad_request(violations: list[FieldViolation]) -> error_details_pb2.BadRequest:
    """The violations in order, as far as there is room."""
    listed = error_details_pb2.BadRequest()
    for violation in violations:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_shortened(violation.field, _MAX_FIELD_BYTES),
            description=_shortened(violation.description, _MAX_DESCRIPTION_BYTES),
        )
        if listed.ByteSize() + entry.ByteSize() > _MAX_VIOLATIONS_BYTES:
            break
        listed.field_violations.append(entry)
    return listed


def _shortened(text: str, max_bytes: int) -> str:
    """At most `max_bytes` on the wire, where a byte that is not printable ASCII takes three; whole characters."""
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate has no encoding
    num_bytes = 0
    for index, character in enumerate(text):
        is_plain = " " <= character <= "~" and character != "%"
        num_bytes += 1 if is_plain else 3 * len(character.encode())
        if num_bytes > max_bytes:
            return text[:index].rstrip() + " ..."
    return text


def _duration(seconds: float) -> Duration:
    whole = math.floor(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> grpc.Status:
    packed = []
    for detail in details:
        entry = any_pb2.Any()
        entry.Pack(detail)
        packed.append(entry)
    number: int = code.value[0]
    status: grpc.Status = rpc_status.to_status(
        status_pb2.Status(code=number, message=message, details=packed)
    )
    return status
