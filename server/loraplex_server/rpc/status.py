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
    AdapterUnavailableError,
    InvalidRequestError,
    LoraplexError,
    StorageError,
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
    UploadTooLargeError,
    WriteStallError,
)

DOMAIN = "loraplex"
_RETRY_AFTER_RESTART_S = 1.0
# A status travels in trailers, which clients take up to 8 KiB of; past that they report an error of their own. The
# message goes twice: percent-encoded, which may triple it, and within the details, which are base64.
_MAX_MESSAGE_BYTES = 1024
_MAX_VIOLATIONS_BYTES = 2048

STATUS_OF: dict[type[LoraplexError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ContextOverflowError: grpc.StatusCode.OUT_OF_RANGE,
    AdapterInvalidError: grpc.StatusCode.INVALID_ARGUMENT,
    AdapterNotFoundError: grpc.StatusCode.NOT_FOUND,
    AdapterExistsError: grpc.StatusCode.ALREADY_EXISTS,
    AdapterIncompatibleError: grpc.StatusCode.FAILED_PRECONDITION,
    AdapterUnavailableError: grpc.StatusCode.FAILED_PRECONDITION,
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
    if isinstance(error, InvalidRequestError):
        details.append(_bad_request(error))
    retry_s = _retry_after_s(error)
    if retry_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(retry_s)))
    return _status(status_code(error), _cut(str(error), _MAX_MESSAGE_BYTES), details)


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


def _bad_request(error: InvalidRequestError) -> error_details_pb2.BadRequest:
    """The violations, in order, as far as there is room for them; the first is always there."""
    request = error_details_pb2.BadRequest()
    for violation in error.violations:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, 128), description=_cut(violation.description, _MAX_MESSAGE_BYTES)
        )
        if request.ByteSize() + entry.ByteSize() > _MAX_VIOLATIONS_BYTES:
            break
        request.field_violations.append(entry)
    return request


def _cut(text: str, max_bytes: int) -> str:
    """`text` in at most `max_bytes` bytes of UTF-8, with an ellipsis where it was cut."""
    raw = text.encode()
    return text if len(raw) <= max_bytes else raw[: max_bytes - 3].decode(errors="ignore") + "…"


def _retry_after_s(error: LoraplexError) -> float | None:
    """When the same request may succeed; None if it will not."""
    if isinstance(error, QueueFullError):
        return error.retry_after_s
    if status_code(error) is grpc.StatusCode.UNAVAILABLE:
        return _RETRY_AFTER_RESTART_S
    return None


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
