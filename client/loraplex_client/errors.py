"""What a call can raise: the server's status and its google.rpc details, as Python errors.

LoraplexApiError
├── InvalidRequestError     INVALID_ARGUMENT, OUT_OF_RANGE: the request itself is at fault; see `violations`
│   └── EventsExpiredError      the events behind a watch's token are gone: list, and watch from now
├── NotFoundError           NOT_FOUND
├── AlreadyExistsError      ALREADY_EXISTS
├── ConflictError           ABORTED: another caller was quicker, e.g. the etag is old: read again, then decide
├── PreconditionError       FAILED_PRECONDITION: e.g. an adapter that does not fit the base model
├── OverloadedError         RESOURCE_EXHAUSTED: send it again after `retry_after_s`, if given
├── UnavailableError        UNAVAILABLE: the server starts, drains, or its engine restarts
│   └── ServerUnreachableError  nothing answered at that address
├── DeadlineError           DEADLINE_EXCEEDED
├── CancelledCallError      CANCELLED: this side gave up
└── ServerFaultError        anything else; quote `request_id` in a report
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from loraplex_client.service_config import MAX_MESSAGE_BYTES

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of the request, and what is wrong with it."""

    field: str
    description: str


class LoraplexApiError(Exception):
    """A call failed. `reason` is stable (docs/errors.md); the message is for people."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        request_id: str = "",
        retry_after_s: float | None = None,
        violations: tuple[FieldViolation, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason  # UPPER_SNAKE; empty if the failure did not come from a Loraplex server
        self.request_id = request_id  # the server's own id of the call; empty if it sent none
        self.retry_after_s = retry_after_s  # when the same request may succeed; None: the server does not say
        self.violations = violations


class InvalidRequestError(LoraplexApiError):
    """The request breaks a documented range, or does not fit the context."""


class EventsExpiredError(InvalidRequestError):
    """A watch cannot go on from its token any more."""


class NotFoundError(LoraplexApiError):
    """No adapter of that name, or no such alias or version of it."""


class AlreadyExistsError(LoraplexApiError):
    """The name belongs to other weights, or the request id to another change."""


class ConflictError(LoraplexApiError):
    """Another call came in between: the adapter has changed since it was read, or its upload is still running."""


class PreconditionError(LoraplexApiError):
    """The server's state does not allow it."""


class OverloadedError(LoraplexApiError):
    """The server takes no more for now."""


class UnavailableError(LoraplexApiError):
    """The server cannot answer now."""


class ServerUnreachableError(UnavailableError):
    """Nothing answers at the address, or what does is no Loraplex server."""


class DeadlineError(LoraplexApiError):
    """The deadline passed."""


class CancelledCallError(LoraplexApiError):
    """The call was cancelled."""


class ServerFaultError(LoraplexApiError):
    """The server failed."""


_CLASS_OF: dict[grpc.StatusCode, type[LoraplexApiError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: CancelledCallError,
}

_CLASS_OF_REASON: dict[str, type[LoraplexApiError]] = {"EVENTS_EXPIRED": EventsExpiredError}
"""Where callers do something else than for the rest of the status."""


def api_error(error: grpc.RpcError) -> LoraplexApiError:
    """Translate a failed call of either grpc stack."""
    call: Any = error  # RpcError declares nothing; the errors that grpc raises are calls
    code: grpc.StatusCode = call.code()
    fields = _details(call.trailing_metadata())
    kind = _CLASS_OF_REASON.get(fields.get("reason", "")) or _CLASS_OF.get(code, ServerFaultError)
    if kind is UnavailableError and not fields.get("reason"):
        kind = ServerUnreachableError
    message = call.details() or code.name
    if kind is OverloadedError and not fields.get("reason") and "larger than max" in message:
        message = (
            f"one message may hold {MAX_MESSAGE_BYTES >> 20} MiB, and this one holds more: "
            f"send a shorter prompt, or less in one call ({message})"
        )
    quotas = [text for text in fields.pop("quotas", ()) if text not in message]
    return kind("; ".join([message, *quotas]), code=code, **fields)


def unreachable(timeout_s: float, target: str = "") -> ServerUnreachableError:
    """What waiting in vain for a server raises."""
    at = f" at {target}" if target else ""
    return ServerUnreachableError(
        f"no ready server{at} within {timeout_s:g} s", code=grpc.StatusCode.UNAVAILABLE
    )


def _details(trailers: Any) -> dict[str, Any]:
    """Fields of LoraplexApiError, and `quotas`, from the rich status in the trailers; empty where there is none."""
    for key, value in trailers or ():
        if key == _DETAILS_KEY:
            try:
                return _read_status(status_pb2.Status.FromString(value))
            except DecodeError:  # a proxy's own idea of details; the plain status still stands
                return {}
    return {}


def _read_status(status: status_pb2.Status) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.RequestInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    quota = error_details_pb2.QuotaFailure()
    for detail in status.details:
        if detail.Unpack(info):
            fields["reason"] = info.reason
        elif detail.Unpack(request):
            fields["request_id"] = request.request_id
        elif detail.Unpack(retry):
            fields["retry_after_s"] = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Unpack(bad_request):
            fields["violations"] = tuple(
                FieldViolation(entry.field, entry.description) for entry in bad_request.field_violations
            )
        elif detail.Unpack(quota):
            fields["quotas"] = [entry.description for entry in quota.violations]
    return fields
