"""The front end's side of the engine process, as far as it needs no process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.messages import AddSequence, FinishReason, SamplingParams, TokenOutput
from loraplex_server.engine_client import EngineClient, EngineState, RestartBackoff, SequenceStream
from loraplex_server.errors import EngineRestartedError, EngineUnavailableError


def test_an_engine_that_dies_again_and_again_is_restarted_ever_more_slowly() -> None:
    backoff = RestartBackoff()

    pauses = [backoff.pause_s(lived_s=3.0) for _ in range(10)]

    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0])


def test_an_engine_that_proved_stable_is_restarted_at_once() -> None:
    backoff = RestartBackoff()
    for _ in range(6):
        backoff.pause_s(lived_s=3.0)

    assert backoff.pause_s(lived_s=31.0) == pytest.approx(0.2)
    assert backoff.pause_s(lived_s=3.0) == pytest.approx(0.4)


def token(token_id: int, finish_reason: FinishReason | None = None) -> TokenOutput:
    return TokenOutput(1, [token_id], finish_reason)


async def test_outputs_that_came_faster_than_they_are_read_come_together_and_in_order() -> None:
    stream = SequenceStream()
    for token_id in range(3):
        stream.push(token(token_id))

    assert [output.token_ids for output in await stream.take()] == [[0], [1], [2]]
    reading = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    assert not reading.done()
    stream.push(token(3))
    assert [output.token_ids for output in await reading] == [[3]]


async def test_what_came_before_a_failure_is_read_first_and_the_failure_for_ever_after() -> None:
    stream = SequenceStream()
    stream.push(token(0))
    stream.fail(EngineRestartedError("died"))

    assert len(await stream.take()) == 1
    with pytest.raises(EngineRestartedError, match="died"):
        await stream.take()


async def test_a_failure_wakes_a_reader_that_waits() -> None:
    stream = SequenceStream()
    reading = asyncio.create_task(stream.take())
    await asyncio.sleep(0)

    stream.fail(EngineRestartedError("died"))

    with pytest.raises(EngineRestartedError, match="died"):
        await reading


def unstarted_client(folder: Path) -> EngineClient:
    config = EngineConfig(base_path=folder / "base", store_path=folder / "store")
    return EngineClient(config, on_state=lambda state: None, on_stats=lambda stats: None)


def test_nothing_is_submitted_before_the_engine_is_ready(tmp_path: Path) -> None:
    client = unstarted_client(tmp_path)

    with pytest.raises(EngineUnavailableError, match="starting or restarting"):
        client.submit(AddSequence(0, [1], None, b"", SamplingParams(), 0.0))

    assert client.state is EngineState.STARTING
    assert (client.num_streams, client.process_id) == (0, None)


def test_ending_what_was_never_begun_is_no_error(tmp_path: Path) -> None:
    client = unstarted_client(tmp_path)
    client.finish(77, abort=True)
    client.forget_adapter("d" * 64)
