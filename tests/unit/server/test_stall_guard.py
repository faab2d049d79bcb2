"""The guard ends a stream that is not read, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from loraplex_server.errors import WriteStallError
from loraplex_server.rpc.grpc_types import Context
from loraplex_server.rpc.stall_guard import StallGuard

TIMEOUT_S = 0.2


class Reader:
    """The far end of a stream: takes each message after a pause."""

    def __init__(self) -> None:
        self.pause_s = 0.0
        self.messages: list[object] = []

    async def write(self, message: object) -> None:
        await asyncio.sleep(self.pause_s)
        self.messages.append(message)


async def stream(reader: Reader, pauses_s: list[float]) -> None:
    with StallGuard(TIMEOUT_S) as guard:
        for pause_s in pauses_s:
            reader.pause_s = pause_s
            await guard.write(cast(Context, cast(Any, reader)), pause_s)


async def test_a_write_that_waits_too_long_ends_the_stream_with_an_error_of_its_own() -> None:
    reader = Reader()
    started_s = asyncio.get_running_loop().time()

    with pytest.raises(WriteStallError):
        await stream(reader, [0.0, 60.0])

    assert reader.messages == [0.0]
    assert asyncio.get_running_loop().time() - started_s >= TIMEOUT_S


async def test_a_stream_may_last_longer_than_the_timeout_of_a_write() -> None:
    reader = Reader()

    await stream(reader, [TIMEOUT_S / 4] * 8)

    assert len(reader.messages) == 8


async def test_a_stall_counts_from_the_beginning_of_the_write_under_way() -> None:
    """The timer comes due while the second write is young, and must give it the rest of its time."""
    reader = Reader()

    await stream(reader, [TIMEOUT_S * 0.6, TIMEOUT_S * 0.7])

    assert len(reader.messages) == 2


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    task = asyncio.create_task(stream(Reader(), [60.0]))
    await asyncio.sleep(TIMEOUT_S / 4)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_timer_ends_with_the_stream() -> None:
    await stream(Reader(), [0.0])

    await asyncio.sleep(TIMEOUT_S * 1.5)  # a timer left behind would cancel this task


async def test_the_task_can_go_on_after_a_stall() -> None:
    with pytest.raises(WriteStallError):
        await stream(Reader(), [60.0])

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
