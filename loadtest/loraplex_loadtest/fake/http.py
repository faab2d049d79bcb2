"""The fake server's HTTP: OpenAI's API, and metrics."""

from __future__ import annotations

import json
import math
from typing import Any

from aiohttp import web

from loraplex_loadtest.fake.engine import ADAPTERS, FakeEngine, QueueFullError, count_words

_ENGINE = web.AppKey("engine", FakeEngine)


async def serve_http(engine: FakeEngine) -> tuple[web.AppRunner, int]:
    """Listens on a port of this machine that the system draws."""
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
    return runner, runner.addresses[0][1]


async def _completions(request: web.Request) -> web.StreamResponse:
    engine = request.app[_ENGINE]
    body = await request.json()
    text = body.get("prompt") or " ".join(turn["content"] for turn in body.get("messages", ()))
    adapter = "" if body["model"] == "base" else body["model"]
    prompt_tokens = count_words(text)
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
        after_s = math.ceil(engine.law.retry_after_s)
        return web.json_response(
            {"error": "full"}, status=429, headers={"retry-after": str(after_s)} if after_s else None
        )
    await response.write(_event({"choices": [], "usage": _usage(prompt_tokens, done)}))
    await response.write(b"data: [DONE]\n\n")
    return response


async def _models(request: web.Request) -> web.Response:
    names = ["base", *(f"fake-{number:02d}" for number in range(ADAPTERS))]
    return web.json_response({"data": [{"id": name} for name in names]})


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(text=request.app[_ENGINE].metrics())


def _usage(prompt_tokens: int, done: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": done}


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"
