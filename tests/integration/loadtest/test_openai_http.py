"""What servers on the other side of HTTP do that the fake one does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from loraplex_loadtest.scenario import Sampling
from loraplex_loadtest.targets.openai_http import OpenAiConnection
from loraplex_loadtest.targets.target import Question, TargetAddress, TargetKind

QUESTION = Question("", "hi", True, 4, True, Sampling(top_p=0.9), "id")


class Heard:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.ends: list[Any] = []

    def tokens(self, count: int) -> bool:
        self.counts.append(count)
        return True

    async def pause(self) -> None: ...

    def answered_by(self, digest: str) -> None: ...

    def counted(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.ends.append((prompt_tokens, completion_tokens))

    def completed(self) -> None:
        self.ends.append("completed")

    def server_times(self, queue_s: float, adapter_load_s: float) -> None: ...

    def failed(self, status: str, reason: str, retry_after_s: float | None = None) -> None:
        self.ends.append((status, reason))


ANSWERS = {
    "silent": 'data: {"choices": [{"delta": {"content": "a"}}]}\n\n: ping\n\ndata: [DONE]\n\n',
    "counting": (
        'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
        'data: {"choices": [{"delta": {"content": "ab"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
        'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'
    ),
    "not-json": 'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: {half\n\n',
    "cut": 'data: {"choices": [{"delta": {"content": "a"}}]}\n\n',
    "no-done": 'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n',
    "broken": 'data: {"error": {"message": "out of memory"}}\n\n',
}


@pytest_asyncio.fixture
async def url() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        assert body["ignore_eos"] is True
        assert body["top_p"] == 0.9
        assert body["stream_options"] == {"include_usage": True}
        if body["model"].isdecimal():
            return web.Response(status=int(body["model"]))
        return web.Response(text=ANSWERS[body["model"]], content_type="text/event-stream")

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def ask(url: str, model: str) -> Heard:
    connection = OpenAiConnection(TargetAddress(TargetKind.OPENAI, url, model=model))
    heard = Heard()
    await connection.ask(connection.prepare(QUESTION), 30.0, heard)
    await connection.close()
    return heard


async def test_a_server_that_counts_nothing_still_ends_well(url: str) -> None:
    heard = await ask(url, "silent")

    assert (heard.counts, heard.ends) == ([1], ["completed"])


async def test_a_running_count_says_how_many_tokens_a_piece_has(url: str) -> None:
    heard = await ask(url, "counting")

    assert (heard.counts, heard.ends) == ([2], [(3, 2)])


async def test_an_error_within_the_stream_is_one(url: str) -> None:
    assert (await ask(url, "broken")).ends == [("INTERNAL", "STREAM_ERROR")]


@pytest.mark.parametrize(
    ("http", "status"),
    [("404", "NOT_FOUND"), ("429", "RESOURCE_EXHAUSTED"), ("503", "UNAVAILABLE"), ("418", "INTERNAL")],
)
async def test_errors_are_counted_in_grpcs_words(url: str, http: str, status: str) -> None:
    assert (await ask(url, http)).ends == [(status, f"HTTP_{http}")]


async def test_a_server_that_is_gone_is_unavailable() -> None:
    assert (await ask("http://127.0.0.1:1", "silent")).ends == [("UNAVAILABLE", "")]


@pytest.mark.parametrize(
    ("model", "end"),
    [
        ("not-json", ("INTERNAL", "STREAM_UNREADABLE")),
        ("cut", ("UNAVAILABLE", "STREAM_CUT")),
        ("no-done", "completed"),
    ],
)
async def test_a_stream_that_ends_otherwise_says_how(url: str, model: str, end: object) -> None:
    heard = await ask(url, model)

    assert (heard.counts, heard.ends) == ([1], [end])


async def test_the_deadline_is_the_requests_own() -> None:
    connection = OpenAiConnection(TargetAddress(TargetKind.OPENAI, "http://127.0.0.1:1"))
    timeout = connection.timeout
    await connection.close()

    assert timeout.total is timeout.sock_connect is timeout.sock_read is None
