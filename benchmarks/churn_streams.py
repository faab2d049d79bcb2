"""Streams that decode side by side, and the times between their tokens. A process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from loraplex_client import AsyncLoraplexClient, Delta

PROMPT = "Tell me everything that you know about"
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two tokens of one stream."""

    index: int  # of the second token in its stream
    at_s: float  # when it came, CLOCK_MONOTONIC
    seconds: float


class StreamsProcess:
    """One stream for each of `adapters`, in a spawned process. A context manager around them."""

    def __init__(self, target: str, adapters: Sequence[str], num_tokens: int, *, is_endless: bool) -> None:
        """`num_tokens` of a completion; endless ones begin anew at its end, until `gaps` is called."""
        self._is_endless = is_endless
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, target, list(adapters), num_tokens, is_endless)
        )

    def __enter__(self) -> StreamsProcess:
        """Returns when every stream has its first token. Raises RuntimeError if one fails."""
        self._process.start()
        self._receive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()

    def gaps(self) -> list[Gap]:
        """Of all streams, in no order: when they have all their tokens, or now. Raises RuntimeError if one fails."""
        if self._is_endless:
            self._connection.send("enough")
        gaps = self._receive()
        assert isinstance(gaps, list)
        return gaps

    def _receive(self) -> object:
        if not self._connection.poll(_TIMEOUT_S):
            raise RuntimeError("the streams do not come to an end")
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("the process of the streams died") from None
        if isinstance(answer, Exception):
            raise RuntimeError(f"a stream failed: {answer}")
        return answer


def _serve(
    connection: Connection, target: str, adapters: list[str], num_tokens: int, is_endless: bool
) -> None:
    try:
        asyncio.run(_run(connection, target, adapters, num_tokens, is_endless))
    except Exception as error:
        connection.send(RuntimeError(str(error)))


async def _run(
    connection: Connection, target: str, adapters: list[str], num_tokens: int, is_endless: bool
) -> None:
    gaps: list[Gap] = []
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    def take() -> None:
        loop.remove_reader(connection.fileno())
        enough.set()

    loop.add_reader(connection.fileno(), take)
    async with AsyncLoraplexClient(target, timeout_s=_TIMEOUT_S) as client:

        async def stream(adapter: str, begun: asyncio.Event) -> None:
            await _stream(client, adapter, num_tokens, begun, gaps)
            while is_endless and not enough.is_set():
                await _stream(client, adapter, num_tokens, begun, gaps)

        begun = [asyncio.Event() for _ in adapters]
        streaming = asyncio.gather(
            *(stream(adapter, event) for adapter, event in zip(adapters, begun, strict=True))
        )
        beginning = asyncio.gather(*(event.wait() for event in begun))
        ending = asyncio.ensure_future(enough.wait())
        either: list[asyncio.Future[Any]] = [beginning, streaming]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if beginning.done():
            connection.send("begun")
        either = [ending, streaming]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not streaming.done():
            streaming.cancel()
        with suppress(asyncio.CancelledError):
            await streaming
    connection.send(gaps)


async def _stream(
    client: AsyncLoraplexClient, adapter: str, num_tokens: int, begun: asyncio.Event, gaps: list[Gap]
) -> None:
    previous_s = None
    index = 0
    async for event in client.stream(
        PROMPT, adapter=adapter, temperature=0.0, max_tokens=num_tokens, ignore_eos=True
    ):
        if isinstance(event, Delta):
            now_s = time.monotonic()
            if previous_s is not None:
                gaps.append(Gap(index, now_s, now_s - previous_s))
            index += event.token_count
            previous_s = now_s
            begun.set()
