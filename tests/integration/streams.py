"""What tests ask for, and streams taken apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from loraplex_client import (
    AsyncCompletionStream,
    AsyncLoraplexClient,
    Completion,
    Delta,
    Finished,
    Started,
    StreamEvent,
)
from tests.integration.live_server import LiveServer

PROMPT = "How much is the fee of the account?"
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 24, "include_token_ids": True}
ENDLESS: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 20_000}
"""Longer than any test lasts: whoever starts it ends it."""
ENDLESS_ON_TIGHT = {**ENDLESS, "max_tokens": 8000}
"""The same within the tight server's context."""


@dataclass(frozen=True)
class Collected:
    """A whole stream, whose form has been checked."""

    started: Started
    deltas: tuple[Delta, ...]
    finished: Finished

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token_id for delta in self.deltas for token_id in delta.token_ids)


def collect(stream: Iterable[StreamEvent]) -> Collected:
    """Read a stream to its end: one Started, Deltas, one Finished, in this order and nothing else."""
    return _checked(list(stream))


async def collect_async(stream: AsyncCompletionStream) -> Collected:
    """As `collect`."""
    return _checked([event async for event in stream])


async def begin(stream: AsyncCompletionStream) -> AsyncCompletionStream:
    """Read until the first text, so that the sequence runs in the engine."""
    assert isinstance(await anext(stream), Started)
    assert isinstance(await anext(stream), Delta)
    return stream


async def answer_all(
    client: AsyncLoraplexClient, requests: list[dict[str, Any]], concurrency: int = 64
) -> list[Completion]:
    """Completions of all requests (keywords of `generate`), at most `concurrency` at once."""
    gate = asyncio.Semaphore(concurrency)

    async def answer(request: dict[str, Any]) -> Completion:
        async with gate:
            return await client.generate(**request)

    return await asyncio.gather(*map(answer, requests))


@asynccontextmanager
async def unchanged_streams(server: LiveServer, adapters: Sequence[str]) -> AsyncIterator[None]:
    """Within the block a greedy stream of each adapter and of the base runs again and again, at the same time.

    Each must have, token for token, what it has when it is alone, and none may fail.
    """
    over = asyncio.Event()
    long = {**GREEDY, "max_tokens": 200}
    async with AsyncLoraplexClient(server.target, timeout_s=120) as client:

        async def ask(adapter: str) -> tuple[int, ...]:
            return (await collect_async(client.stream(PROMPT, adapter=adapter, **long))).token_ids

        async def repeat(adapter: str) -> int:
            rounds = 0
            while not over.is_set():
                assert await ask(adapter) == alone[adapter]
                rounds += 1
            return rounds

        alone = {adapter: await ask(adapter) for adapter in ("", *adapters)}
        assert len(set(alone.values())) == len(alone)
        running = [asyncio.create_task(repeat(adapter)) for adapter in alone]
        try:
            yield
        finally:
            over.set()
            rounds = await asyncio.gather(*running)
        assert min(rounds) > 0


def _checked(events: list[StreamEvent]) -> Collected:
    assert [type(event) for event in events] == [Started, *[Delta] * (len(events) - 2), Finished]
    started, *deltas, finished = events
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    return Collected(started, tuple(delta for delta in deltas if isinstance(delta, Delta)), finished)
