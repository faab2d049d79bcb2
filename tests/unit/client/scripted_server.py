"""A gRPC server that fails as told. Real sockets, real statuses; only the model is missing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from loraplex.v1 import adapter_pb2_grpc, inference_pb2, inference_pb2_grpc, training_pb2_grpc
from tests.unit.client.faults import Fault, abort
from tests.unit.client.scripted_adapters import Adapters, AdapterServicer
from tests.unit.client.scripted_training import Training, TrainingServicer


@dataclass
class ScriptedServer:
    """What happened and what is to happen. Each call takes the next fault; without one it succeeds."""

    faults: list[Fault] = field(default_factory=list)
    num_calls: int = 0
    adapters: Adapters = field(default_factory=Adapters)
    training: Training = field(default_factory=Training)
    stream_cancelled: threading.Event = field(default_factory=threading.Event)
    endless: bool = False
    health: health.HealthServicer = field(default_factory=health.HealthServicer)
    target: str = ""

    def next_fault(self) -> Fault | None:
        self.num_calls += 1
        return self.faults.pop(0) if self.faults else None

    def fail_if_told(self, context: Any) -> None:
        fault = self.next_fault()
        if fault is not None:
            abort(context, fault)


@contextmanager
def running(script: ScriptedServer) -> Iterator[ScriptedServer]:
    server = grpc.server(ThreadPoolExecutor(8))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(_Inference(script), server)  # type: ignore[abstract]
    adapter_pb2_grpc.add_AdapterServiceServicer_to_server(AdapterServicer(script), server)
    training_pb2_grpc.add_TrainingServiceServicer_to_server(TrainingServicer(script), server)
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
            abort(context, fault)
        return inference_pb2.GenerateResponse(text="hello", finish_reason=inference_pb2.FINISH_REASON_STOP)

    def StreamGenerate(self, request: inference_pb2.StreamGenerateRequest, context: Any) -> Any:
        fault = self._script.next_fault()
        if fault is not None and not fault.after_events:
            abort(context, fault)
        context.add_callback(self._script.stream_cancelled.set)  # also when it ends by itself
        yield inference_pb2.StreamGenerateResponse(started=inference_pb2.Started(request_id="r"))
        if fault is not None:
            abort(context, fault)
        for text in ("hel", "lo"):
            yield inference_pb2.StreamGenerateResponse(delta=inference_pb2.Delta(text=text, token_count=1))
        while self._script.endless and context.is_active():
            self._script.stream_cancelled.wait(0.02)
        yield inference_pb2.StreamGenerateResponse(
            finished=inference_pb2.Finished(finish_reason=inference_pb2.FINISH_REASON_LENGTH)
        )
