"""The engine process dies; the front end says so, brings it back, and nothing needs to be registered anew."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from loraplex.v1 import inference_pb2, inference_pb2_grpc
from loraplex_client import AsyncLoraplexClient, DeadlineError, LoraplexApiError, UnavailableError
from tests.integration.conftest import ADAPTERS, StartServer, register_all
from tests.integration.health import NOT_SERVING, SERVING, next_status, watched_health
from tests.integration.live_server import LiveServer, await_idle, running_server
from tests.integration.raw_calls import failure_of, raw_channel
from tests.integration.streams import ENDLESS, GREEDY, PROMPT, answer_all, begin


async def drained(stream: Any) -> LoraplexApiError | None:
    """How a stream ends: None if it finished."""
    try:
        async for _ in stream:
            pass
    except LoraplexApiError as error:
        return error
    return None


@pytest.fixture(scope="module")
def crash_server(
    tiny_base: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """Its engine may be killed, but not often: the pause before each new start doubles."""
    with running_server(tiny_base, tmp_path_factory.mktemp("crash-server")) as live:
        register_all(live, packages)
        yield live


async def test_a_deadline_holds_even_while_the_engine_hangs(crash_server: LiveServer) -> None:
    server = crash_server
    engine = server.engine()
    async with AsyncLoraplexClient(server.target, timeout_s=60) as client:
        stream = await begin(client.stream(PROMPT, adapter="red", **ENDLESS))
        engine.send_signal(signal.SIGSTOP)
        with pytest.raises(DeadlineError):
            await client.generate(PROMPT, timeout_s=0.5, **GREEDY)
        stream.cancel()
        engine.send_signal(signal.SIGCONT)

        assert (await client.generate(PROMPT, **GREEDY)).usage.completion_tokens == 24
    with server.client() as sync:
        await_idle(sync)


async def test_while_the_engine_restarts_requests_are_refused_with_a_time_to_come_back(
    crash_server: LiveServer,
) -> None:
    server = crash_server
    with watched_health(server) as statuses, raw_channel(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        assert await next_status(statuses) == SERVING
        with server.client() as client:
            client.generate(PROMPT, adapter=ADAPTERS[0], **GREEDY)
        with watched_health(server) as another:
            assert await next_status(another) == SERVING  # and it leaves: nobody else's watch may end with it
        server.kill_engine()
        assert await next_status(statuses) == NOT_SERVING

        failure = failure_of(lambda: stub.Generate(inference_pb2.GenerateRequest(prompt=PROMPT)))

        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.reason == "ENGINE_UNAVAILABLE"
        assert failure.retry_after_s is not None
        assert failure.retry_after_s > 0
        with server.client() as client:  # what needs no engine is answered meanwhile
            assert [adapter.name for adapter in client.adapters.list()] == sorted(ADAPTERS)
            assert client.server_info().load.running == 0
            assert not client.is_ready()
        assert server.metric("loraplex_adapter_slots_used") == 0  # nor does a gauge speak of the dead one
        assert server.metric("loraplex_kv_blocks_cached") == 0
        assert await next_status(statuses) == SERVING


async def test_streams_end_unavailable_and_the_engine_comes_back_with_its_adapters_twice_in_a_row(
    crash_server: LiveServer,
) -> None:
    server = crash_server
    names = ("", *ADAPTERS)
    requests: list[dict[str, Any]] = [{"prompt": PROMPT, "adapter": name, **GREEDY} for name in names]
    async with AsyncLoraplexClient(server.target, timeout_s=60) as client:
        before = [answer.token_ids for answer in await answer_all(client, requests)]
        with watched_health(server) as statuses:
            assert await next_status(statuses) == SERVING
            starts = server.metric("loraplex_engine_starts_total")
            for round_number in (1, 2):
                done = [client.stream(**request) for request in requests]
                assert [await drained(stream) for stream in done] == [None] * len(done)
                streams = [
                    await begin(client.stream(PROMPT, adapter=names[number % 4], **ENDLESS))
                    for number in range(16)
                ]

                server.kill_engine()

                ends = await asyncio.gather(*map(drained, streams))
                assert [(type(end), end and end.reason) for end in ends] == [
                    (UnavailableError, "ENGINE_RESTARTED")
                ] * 16
                assert await next_status(statuses) == NOT_SERVING
                assert await next_status(statuses) == SERVING
                after = [answer.token_ids for answer in await answer_all(client, requests)]
                assert after == before
                assert server.metric("loraplex_engine_starts_total") == starts + round_number
        assert server.metric("loraplex_rejects_total", reason="ENGINE_RESTARTED") >= 32
    with server.client() as sync:
        await_idle(sync)
        assert sync.server_info().load.adapters_registered == len(ADAPTERS)


@pytest.mark.slow
async def test_whatever_is_sent_around_the_moment_of_a_crash_is_answered_or_unavailable(
    own_server: StartServer,
) -> None:
    server = own_server()
    stop = asyncio.Event()
    failures: list[LoraplexApiError] = []
    num_answers = 0

    async def keep_asking(client: AsyncLoraplexClient, number: int) -> None:
        nonlocal num_answers
        adapter = ("", *ADAPTERS)[number % 4]
        while not stop.is_set():
            try:
                if number % 2:
                    await client.generate(PROMPT, adapter=adapter, max_tokens=3)
                else:
                    async with client.stream(PROMPT, adapter=adapter, max_tokens=50) as stream:
                        await anext(stream)  # and gives up
                num_answers += 1
            except LoraplexApiError as error:
                failures.append(error)
                await asyncio.sleep(0.05)  # the engine's start needs the processor too

    async with AsyncLoraplexClient(server.target, timeout_s=30) as client:
        with watched_health(server) as statuses:
            assert await next_status(statuses) == SERVING
            askers = [asyncio.create_task(keep_asking(client, number)) for number in range(12)]
            for _ in range(2):
                seen = num_answers
                while num_answers < seen + 24:  # noqa: ASYNC110  # the askers are under way
                    await asyncio.sleep(0.01)
                server.kill_engine()
                assert await next_status(statuses) == NOT_SERVING
                assert await next_status(statuses) == SERVING
            stop.set()
            await asyncio.gather(*askers)
            assert (await client.generate(PROMPT, **GREEDY)).usage.completion_tokens == 24

    assert {failure.code for failure in failures} == {grpc.StatusCode.UNAVAILABLE}
    assert {failure.reason for failure in failures} <= {"ENGINE_RESTARTED", "ENGINE_UNAVAILABLE"}


def test_an_engine_that_dies_while_it_starts_is_started_again(own_server: StartServer) -> None:
    server = own_server()
    server.kill_engine()
    server.kill_engine()  # the next one, which is loading

    with server.client() as client:
        client.wait_until_ready(60)
        assert client.generate(PROMPT, adapter="green", **GREEDY).usage.completion_tokens == 24


@pytest.mark.slow
async def test_an_engine_that_cannot_start_again_is_tried_until_it_can(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    with running_server(base, tmp_path) as server, watched_health(server) as statuses:
        assert await next_status(statuses) == SERVING
        (base / "model.safetensors").rename(base / "away")
        server.kill_engine()
        assert await next_status(statuses) == NOT_SERVING
        await asyncio.to_thread(server.await_log, "engine could not start")
        with server.client() as client:
            with pytest.raises(UnavailableError):
                client.generate(PROMPT)

            (base / "away").rename(base / "model.safetensors")

            assert await next_status(statuses) == SERVING
            assert client.generate(PROMPT, **GREEDY).usage.completion_tokens == 24


def test_the_engine_leaves_when_the_front_end_is_killed_though_streams_run(own_server: StartServer) -> None:
    server = own_server()
    engine = server.engine()
    with server.client() as client:
        stream = client.stream(PROMPT, **ENDLESS)
        next(stream)
        next(stream)
        server.kill()

        engine.wait(timeout=10)  # raises TimeoutExpired
        with pytest.raises(UnavailableError):
            list(stream)
