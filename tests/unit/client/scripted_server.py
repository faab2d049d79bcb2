"""A gRPC server that fails as told. Real sockets, real statuses; only the model is missing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_status import rpc_status

from loraplex.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)


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


@dataclass
class ScriptedServer:
    """What happened and what is to happen. Each call takes the next fault; without one it succeeds."""

    faults: list[Fault] = field(default_factory=list)
    num_calls: int = 0
    num_adapters: int = 0
    uploads: list[list[adapter_pb2.UploadAdapterRequest]] = field(default_factory=list)
    stream_cancelled: threading.Event = field(default_factory=threading.Event)
    endless: bool = False
    health: health.HealthServicer = field(default_factory=health.HealthServicer)
    target: str = ""

    def next_fault(self) -> Fault | None:
        self.num_calls += 1
        return self.faults.pop(0) if self.faults else None


@contextmanager
def running(script: ScriptedServer) -> Iterator[ScriptedServer]:
    server = grpc.server(ThreadPoolExecutor(8))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(_Inference(script), server)  # type: ignore[abstract]
    adapter_pb2_grpc.add_AdapterServiceServicer_to_server(_Adapters(script), server)  # type: ignore[abstract]
    health_pb2_grpc.add_HealthServicer_to_server(script.health, server)
    script.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield script
    finally:
        server.stop(0).wait()


class _Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, script: ScriptedServer) -> None:
        self._script = script

    def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> Any:
        fault = self._script.next_fault()
        if fault is not None:
            _abort(context, fault)
        return inference_pb2.GenerateResponse(text="hello", finish_reason=inference_pb2.FINISH_REASON_STOP)

    def StreamGenerate(self, request: inference_pb2.StreamGenerateRequest, context: Any) -> Any:
        fault = self._script.next_fault()
        if fault is not None and not fault.after_events:
            _abort(context, fault)
        context.add_callback(self._script.stream_cancelled.set)  # also when it ends by itself
        yield inference_pb2.StreamGenerateResponse(started=inference_pb2.Started(request_id="r"))
        if fault is not None:
            _abort(context, fault)
        for text in ("hel", "lo"):
            yield inference_pb2.StreamGenerateResponse(delta=inference_pb2.Delta(text=text, token_count=1))
        while self._script.endless and context.is_active():
            self._script.stream_cancelled.wait(0.02)
        yield inference_pb2.StreamGenerateResponse(
            finished=inference_pb2.Finished(finish_reason=inference_pb2.FINISH_REASON_LENGTH)
        )


class _Adapters(adapter_pb2_grpc.AdapterServiceServicer):
    def __init__(self, script: ScriptedServer) -> None:
        self._script = script

    def ListAdapters(self, request: adapter_pb2.ListAdaptersRequest, context: Any) -> Any:
        first = int(request.page_token or 0)
        last = min(first + (request.page_size or 100), self._script.num_adapters)
        return adapter_pb2.ListAdaptersResponse(
            adapters=[
                adapter_pb2.Adapter(name=f"a{index}", state=adapter_pb2.Adapter.STATE_READY)
                for index in range(first, last)
            ],
            next_page_token=str(last) if last < self._script.num_adapters else "",
        )

    def UploadAdapter(self, request_iterator: Any, context: Any) -> Any:
        self._script.uploads.append(list(request_iterator))
        return adapter_pb2.UploadAdapterResponse(adapter=adapter_pb2.Adapter(name="up"))


def _abort(context: Any, fault: Fault) -> NoReturn:
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
