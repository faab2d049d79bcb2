"""A server that generates nothing and obeys a latency law: loraplex.v1, vllm.Inference, OpenAI's HTTP, and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from aiohttp import web

from loraplex.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    ops_pb2,
    ops_pb2_grpc,
)
from loraplex_client import health
from loraplex_loadtest.fake.law import LatencyLaw, LawState, Schedule
from loraplex_loadtest.running.clock import now_s
from loraplex_loadtest.targets.vllm_messages import message_classes

ADAPTERS = 16
_DIGEST = "0" * 64


class FakeEngine:
    """Law, counters, and the one place where tokens come due."""

    def __init__(self, law: LatencyLaw) -> None:
        self.state = LawState(law)
        self.law = law
        self.counters: dict[tuple[str, str], int] = {}

    async def answer(
        self, adapter: str, prompt_tokens: int, tokens: int
    ) -> AsyncIterator[tuple[Schedule, int]]:
        """(schedule, tokens of this message) as they come due. Raises QueueFullError."""
        schedule = self.state.admit(now_s(), adapter, prompt_tokens, tokens)
        if schedule is None:
            raise QueueFullError
        label, done, finish = adapter or "base", 0, "cancelled"
        try:
            while done < tokens:
                count = min(self.law.tokens_per_message, tokens - done)
                due_s = schedule.first_s + schedule.per_token_s * (done + count - 1)
                if (wait_s := due_s - now_s()) > 0:
                    await asyncio.sleep(wait_s)
                done += count
                yield schedule, count
            finish = "length"
        finally:
            self._add("requests", f'adapter="{label}",finish="{finish}"', 1)
            if done:
                self._add("prompt_tokens", f'adapter="{label}"', prompt_tokens)
                self._add("completion_tokens", f'adapter="{label}"', done)

    def metrics(self) -> str:
        """Prometheus text."""
        lines = []
        for name in ("requests", "prompt_tokens", "completion_tokens"):
            lines.append(f"# TYPE loraplex_{name} counter")
            lines += [
                f"loraplex_{name}_total{{{labels}}} {value}"
                for (counter, labels), value in sorted(self.counters.items())
                if counter == name
            ]
        return "\n".join(lines) + "\n"

    def _add(self, name: str, labels: str, value: int) -> None:
        self.counters[name, labels] = self.counters.get((name, labels), 0) + value


class QueueFullError(Exception):
    """As many requests wait as may."""


class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    """StreamGenerate and CountTokens; a word is a token."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        asked = request.request
        prompt_tokens = _words(asked.prompt or " ".join(turn.content for turn in asked.chat.messages))
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
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as many requests wait as may")
        yield inference_pb2.StreamGenerateResponse(
            finished=inference_pb2.Finished(
                finish_reason=inference_pb2.FINISH_REASON_LENGTH,
                usage=inference_pb2.Usage(prompt_tokens=prompt_tokens, completion_tokens=done),
                timings=inference_pb2.Timings(adapter_load_seconds=load_s),
            )
        )

    async def CountTokens(self, request: Any, context: Any) -> Any:
        text = request.prompt or " ".join(turn.content for turn in request.chat.messages)
        return inference_pb2.CountTokensResponse(token_count=_words(text))


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
        prompt_tokens, tokens = _words(request.text), request.stopping.max_new_tokens
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


async def _completions(request: web.Request) -> web.StreamResponse:
    engine = request.app[_ENGINE]
    body = await request.json()
    text = body.get("prompt") or " ".join(turn["content"] for turn in body.get("messages", ()))
    adapter = "" if body["model"] == "base" else body["model"]
    prompt_tokens = _words(text)
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    done = 0
    try:
        async for _, count in engine.answer(adapter, prompt_tokens, body["max_tokens"]):
            if not done:
                await response.prepare(request)
            done += count
            words = " word" * count
            choice = {"delta": {"content": words}} if "messages" in body else {"text": words}
            await response.write(_event({"choices": [choice], "usage": _usage(prompt_tokens, done)}))
    except QueueFullError:
        return web.json_response({"error": "full"}, status=429)
    await response.write(_event({"choices": [], "usage": _usage(prompt_tokens, done)}))
    await response.write(b"data: [DONE]\n\n")
    return response


async def _models(request: web.Request) -> web.Response:
    names = ["base", *(f"fake-{number:02d}" for number in range(ADAPTERS))]
    return web.json_response({"data": [{"id": name} for name in names]})


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(text=request.app[_ENGINE].metrics())


_ENGINE = web.AppKey("engine", FakeEngine)


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
    app = web.Application()
    app[_ENGINE] = engine
    app.add_routes(
        [
            web.post("/v1/completions", _completions),
            web.post("/v1/chat/completions", _completions),
            web.get("/v1/models", _models),
            web.get("/metrics", _metrics),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return server, runner, grpc_port, runner.addresses[0][1]


def _words(text: str) -> int:
    return max(1, len(text.split()))


def _usage(prompt_tokens: int, done: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": done}


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"
