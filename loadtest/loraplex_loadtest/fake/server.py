"""A server that generates nothing and obeys a latency law: loraplex.v1 and vllm.Inference here, HTTP beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from aiohttp import web
from google.rpc import error_details_pb2, status_pb2

from loraplex.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    ops_pb2,
    ops_pb2_grpc,
)
from loraplex_client import health
from loraplex_loadtest.fake.engine import ADAPTERS, FakeEngine, QueueFullError, count_words
from loraplex_loadtest.fake.http import serve_http
from loraplex_loadtest.fake.law import LatencyLaw
from loraplex_loadtest.targets.vllm_messages import message_classes

_DIGEST = "0" * 64


class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    """StreamGenerate and CountTokens; a word is a token."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        asked = request.request
        prompt_tokens = count_words(asked.prompt or " ".join(turn.content for turn in asked.chat.messages))
        done, load_s = 0, 0.0
        try:
            async for schedule, count in self._engine.answer(
                asked.adapter, prompt_tokens, asked.stopping.max_tokens
            ):
                if not done:
                    load_s = schedule.load_s
                    yield inference_pb2.StreamGenerateResponse(
                        started=inference_pb2.Started(
                            adapter_digest=_DIGEST if asked.adapter else "", prompt_tokens=prompt_tokens
                        )
                    )
                done += count
                yield inference_pb2.StreamGenerateResponse(
                    delta=inference_pb2.Delta(text=" word" * count, token_count=count)
                )
        except QueueFullError:
            await _refuse(context, self._engine.law.retry_after_s)
        yield inference_pb2.StreamGenerateResponse(
            finished=inference_pb2.Finished(
                finish_reason=inference_pb2.FINISH_REASON_LENGTH,
                usage=inference_pb2.Usage(prompt_tokens=prompt_tokens, completion_tokens=done),
                timings=inference_pb2.Timings(adapter_load_seconds=load_s),
            )
        )

    async def CountTokens(self, request: Any, context: Any) -> Any:
        text = request.prompt or " ".join(turn.content for turn in request.chat.messages)
        return inference_pb2.CountTokensResponse(token_count=count_words(text))


async def _refuse(context: Any, retry_after_s: float) -> None:
    """RESOURCE_EXHAUSTED, with google.rpc.RetryInfo if there is a time."""
    told = "as many requests wait as may"
    if retry_after_s:
        status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message=told)
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(retry_after_s * 1e9))
        status.details.add().Pack(retry)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, told)


class FakeOps(ops_pb2_grpc.OpsServiceServicer):
    """GetServerInfo."""

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        response = ops_pb2.GetServerInfoResponse(version="fake")
        response.base_model.id = "a latency law"
        return response


class FakeAdapters(adapter_pb2_grpc.AdapterServiceServicer):
    """ListAdapters."""

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        names = [f"tenants/default/adapters/fake-{number:02d}" for number in range(ADAPTERS)]
        return adapter_pb2.ListAdaptersResponse(
            adapters=[
                adapter_pb2.Adapter(
                    name=name,
                    digest=_DIGEST,
                    versions=[adapter_pb2.Version(digest=_DIGEST)],
                    aliases={"stable": _DIGEST},
                )
                for name in names
            ]
        )


def _vllm_handler(engine: FakeEngine) -> grpc.GenericRpcHandler:
    messages = message_classes()
    response_class = messages["GenerateResponse"]

    async def generate_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        prompt_tokens, tokens = count_words(request.text), request.stopping.max_new_tokens
        done = 0
        async for _, count in engine.answer(request.lora_name, prompt_tokens, tokens):
            response = response_class()
            if not done:
                response.prompt_info.num_prompt_tokens = prompt_tokens
            done += count
            response.outputs.text = " word" * count
            response.outputs.num_tokens = count
            if done == tokens:
                response.outputs.finish_info.num_output_tokens = done
            yield response

    handler = grpc.unary_stream_rpc_method_handler(
        generate_stream,
        request_deserializer=messages["GenerateRequest"].FromString,
        response_serializer=response_class.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("vllm.Inference", {"GenerateStream": handler})


def _health_handler() -> grpc.GenericRpcHandler:
    async def check(request: bytes, context: Any) -> bytes:
        return b"\x08\x01"  # SERVING

    handler = grpc.unary_unary_rpc_method_handler(
        check, request_deserializer=health.as_bytes, response_serializer=health.as_bytes
    )
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})


async def serve(law: LatencyLaw) -> tuple[grpc.aio.Server, web.AppRunner, int, int]:
    """Both ports of this machine, drawn by the system: gRPC's and HTTP's."""
    engine = FakeEngine(law)
    server = grpc.aio.server()
    # The calls that they leave out are answered UNIMPLEMENTED by what they inherit; its stub does not say so.
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(FakeInference(engine), server)  # type: ignore[abstract]
    ops_pb2_grpc.add_OpsServiceServicer_to_server(FakeOps(), server)  # type: ignore[abstract]
    adapter_pb2_grpc.add_AdapterServiceServicer_to_server(FakeAdapters(), server)  # type: ignore[abstract]
    server.add_generic_rpc_handlers((_vllm_handler(engine), _health_handler()))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    runner, http_port = await serve_http(engine)
    return server, runner, grpc_port, http_port
