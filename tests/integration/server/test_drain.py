"""Stopping: what runs may finish, what comes is turned away, and the process ends with 0."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from loraplex.v1 import inference_pb2, inference_pb2_grpc, ops_pb2, ops_pb2_grpc
from loraplex_client import AsyncLoraplexClient, LoraplexApiError, UnavailableError
from tests.integration.conftest import ADAPTERS, StartServer
from tests.integration.health import NOT_SERVING, SERVING, next_status, watched_health
from tests.integration.live_server import LiveServer, free_port, start_server
from tests.integration.raw_calls import failure_of, raw_channel
from tests.integration.streams import ENDLESS, GREEDY, PROMPT, begin

LONG: dict[str, Any] = {**GREEDY, "max_tokens": 2000}


def by_sigterm(server: LiveServer) -> None:
    server.send_signal(signal.SIGTERM)


def by_ctrl_c(server: LiveServer) -> None:
    """A terminal sends SIGINT to the whole process group, the engine included."""
    os.killpg(server.process.pid, signal.SIGINT)


def by_service_manager(server: LiveServer) -> None:
    """systemd sends SIGTERM to every process of the service."""
    os.killpg(server.process.pid, signal.SIGTERM)


def by_rpc(server: LiveServer) -> None:
    """How many it counts is asked elsewhere, of streams that cannot have ended meanwhile."""
    with server.client() as client:
        assert client.drain() > 0


@pytest.mark.parametrize(
    "stop", [by_sigterm, by_ctrl_c, pytest.param(by_service_manager, marks=pytest.mark.slow), by_rpc]
)
async def test_running_streams_finish_new_requests_are_turned_away_and_the_exit_code_is_0(
    own_server: StartServer, stop: Callable[[LiveServer], None]
) -> None:
    server = own_server(drain_grace_s=240)
    async with AsyncLoraplexClient(server.target, timeout_s=240) as client:
        with watched_health(server) as statuses, raw_channel(server) as channel:
            assert await next_status(statuses) == SERVING
            streams = [await begin(client.stream(PROMPT, adapter=name, **LONG)) for name in ("", *ADAPTERS)]

            stop(server)

            assert await next_status(statuses) == NOT_SERVING
            refused = await asyncio.to_thread(_ask_until_refused, channel)
            assert refused.code is grpc.StatusCode.UNAVAILABLE
            assert refused.reason == "DRAINING"
            assert refused.retry_after_s is not None
            ends = [[event async for event in stream][-1] for stream in streams]

    assert [end.usage.completion_tokens for end in ends] == [LONG["max_tokens"]] * 4  # type: ignore[union-attr]
    assert await asyncio.to_thread(server.await_exit) == 0


async def test_what_runs_beyond_the_grace_is_cut_off_as_unavailable(own_server: StartServer) -> None:
    server = own_server()
    endless = inference_pb2.GenerateRequest(
        prompt=PROMPT,
        stopping=inference_pb2.StoppingCriteria(max_tokens=ENDLESS["max_tokens"], ignore_eos=True),
    )
    async with AsyncLoraplexClient(server.target, timeout_s=60) as client:
        streams = [await begin(client.stream(PROMPT, adapter=name, **ENDLESS)) for name in ADAPTERS]
        with raw_channel(server) as channel:  # a client would send a refused unary call again
            unary = inference_pb2_grpc.InferenceServiceStub(channel).Generate.future(endless, timeout=60)
            while (await client.server_info()).load.running < 4:  # noqa: ASYNC110  # told only when asked
                await asyncio.sleep(0.01)
            started_s = time.monotonic()

            assert await client.drain(grace_s=0.5) == 4

            for stream in streams:
                with pytest.raises(UnavailableError) as caught:
                    await _read_out(stream)
                assert caught.value.reason == "DRAINING"
            assert (await asyncio.to_thread(failure_of, unary.result)).reason == "DRAINING"
    assert await asyncio.to_thread(server.await_exit) == 0
    assert time.monotonic() - started_s < 15


async def test_a_second_drain_can_shorten_the_grace_of_the_first(own_server: StartServer) -> None:
    server = own_server()
    async with AsyncLoraplexClient(server.target, timeout_s=60) as client:
        stream = await begin(client.stream(PROMPT, **ENDLESS))
        assert await client.drain(grace_s=600) == 1
        with raw_channel(server) as channel:
            assert (await asyncio.to_thread(_ask_until_refused, channel)).reason == "DRAINING"

        assert await client.drain(grace_s=0) == 1

        with pytest.raises(UnavailableError):
            await _read_out(stream)
    assert await asyncio.to_thread(server.await_exit) == 0


def test_a_grace_out_of_range_is_refused_and_drains_nothing(server: LiveServer) -> None:
    with raw_channel(server) as channel:
        stub = ops_pb2_grpc.OpsServiceStub(channel)
        for grace_s in (-1.0, 3601.0, float("nan"), float("inf")):
            failure = failure_of(lambda value=grace_s: stub.Drain(ops_pb2.DrainRequest(grace_seconds=value)))  # type: ignore[misc]
            assert [violation.field for violation in failure.violations] == ["grace_seconds"]

    with server.client() as client:
        assert client.is_ready()


def by_rpc_with_nothing_in_flight(server: LiveServer) -> None:
    with server.client() as client:
        assert client.drain() == 0


@pytest.mark.parametrize("stop", [by_service_manager, by_ctrl_c, by_rpc_with_nothing_in_flight])
def test_a_server_that_is_still_loading_stops_when_told_to(
    tiny_base: Path, tmp_path: Path, stop: Callable[[LiveServer], None]
) -> None:
    server = start_server(tiny_base, tmp_path / "data", tmp_path / "log", port=free_port())
    server.await_log("listening")

    stop(server)

    assert server.await_exit() == 0
    server.stop()
    assert "serving" not in server.log()


@pytest.mark.slow
async def test_a_hanging_engine_does_not_keep_the_server_from_stopping(own_server: StartServer) -> None:
    server = own_server(drain_grace_s=0.2)
    engine = server.engine()
    async with AsyncLoraplexClient(server.target, timeout_s=60) as client:
        stream = await begin(client.stream(PROMPT, **ENDLESS))
        engine.send_signal(signal.SIGSTOP)
        server.send_signal(signal.SIGTERM)
        with pytest.raises(UnavailableError):
            await _read_out(stream)

    assert await asyncio.to_thread(server.await_exit, 30) == 0
    assert not engine.is_running()


async def _read_out(stream: Any) -> None:
    async for _ in stream:
        pass


def _ask_until_refused(channel: grpc.Channel) -> LoraplexApiError:
    """For a moment after NOT_SERVING, requests are still taken, so that load balancers can turn away first."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    request = inference_pb2.GenerateRequest(
        prompt=PROMPT, stopping=inference_pb2.StoppingCriteria(max_tokens=1)
    )
    for _ in range(1000):
        try:
            stub.Generate(request)
        except grpc.RpcError:
            return failure_of(lambda: stub.Generate(request))
    raise AssertionError("requests are still taken")
