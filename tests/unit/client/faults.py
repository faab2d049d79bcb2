"""Statuses to end a scripted call with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class Fault:
    """A status to end a call with."""

    code: grpc.StatusCode
    message: str = "as told"
    details: tuple[Message, ...] = ()
    after_events: int = 0  # of a stream: sent before it


def error_info(reason: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="loraplex.test")


def retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    whole = int(seconds)
    return error_details_pb2.RetryInfo(
        retry_delay=Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))
    )


def abort(context: Any, fault: Fault) -> NoReturn:
    packed = []
    for detail in fault.details:
        entry = any_pb2.Any()
        entry.Pack(detail)
        packed.append(entry)
    if not packed:
        context.abort(fault.code, fault.message)
    status = status_pb2.Status(code=fault.code.value[0], message=fault.message, details=packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort returned")
