"""Streams that decode without end, and the times between their tokens. A process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType

from loraplex_client import AsyncLoraplexClient, Delta

_PROMPT = "Tell me everything that you know about"
_READY_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two tokens of one stream."""

    at_s: float  # when the second came, CLOCK_MONOTONIC
    seconds: float


class StreamsProcess:
    """`adapters` are the streams: one each, in a spawned process. A context manager that lasts as long as they do."""

    def __init__(self, target: str, adapters: Sequence[str], num_tokens: int) -> None:
        """`num_tokens` of each stream; it fails if they end before it is left."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target, list(adapters), num_tokens))

    def __enter__(self) -> StreamsProcess:
        self._process.start()
        if not self._connection.poll(_READY_TIMEOUT_S):
            self._process.kill()
            raise RuntimeError("the streams did not begin")
        self._receive()  # all have begun
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()

    def finish(self) -> list[Gap]:
        """End the streams; the gaps of all of them, in no order. Raises RuntimeError if any had ended by itself."""
        self._connection.send("finish")
        gaps = self._receive()
        assert isinstance(gaps, list)
        return gaps

    def _receive(self) -> object:
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("the process of the streams died") from None
        if isinstance(answer, Exception):
            raise RuntimeError(f"a stream failed: {answer}")
        return answer


def _serve(connection: Connection, target: str, adapters: list[str], num_tokens: int) -> None:
    try:
        asyncio.run(_run(connection, target, adapters, num_tokens))
    except Exception as error:
        connection.send(RuntimeError(str(error)))


async def _run(connection: Connection, target: str, adapters: list[str], num_tokens: int) -> None:
    gaps: list[Gap] = []
    async with AsyncLoraplexClient(target, timeout_s=600.0) as client:
        begun = [asyncio.Event() for _ in adapters]
        streams = [
            asyncio.create_task(_stream(client, adapter, num_tokens, event, gaps))
            for adapter, event in zip(adapters, begun, strict=True)
        ]
        for event in begun:
            await event.wait()
        connection.send("begun")
        told = asyncio.Event()
        asyncio.get_running_loop().add_reader(connection.fileno(), told.set)
        done, _ = await asyncio.wait(
            {*streams, asyncio.ensure_future(told.wait())}, return_when=asyncio.FIRST_COMPLETED
        )
        ended = [stream for stream in streams if stream in done]
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    if ended:
        raise RuntimeError(f"a stream ended too early: {ended[0].exception() or 'all its tokens came'}")
    connection.send(gaps)


async def _stream(
    client: AsyncLoraplexClient, adapter: str, num_tokens: int, begun: asyncio.Event, gaps: list[Gap]
) -> None:
    stream = client.stream(_PROMPT, adapter=adapter, temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    previous_s = None
    try:
        async for event in stream:
            if isinstance(event, Delta):
                now_s = time.monotonic()
                if previous_s is not None:
                    gaps.append(Gap(now_s, now_s - previous_s))
                previous_s = now_s
                begun.set()
    finally:
        stream.cancel()
