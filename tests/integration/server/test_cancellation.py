"""Whoever gives up, however, frees what the request held, at once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from loraplex_client import (
    AsyncLoraplexClient,
    CancelledCallError,
    DeadlineError,
    LoraplexClient,
    NotFoundError,
)
from tests.integration.conftest import ADAPTERS, StartServer
from tests.integration.live_server import LiveServer, await_idle, environment, eventually
from tests.integration.streams import ENDLESS, ENDLESS_ON_TIGHT, GREEDY, PROMPT, answer_all, begin

NUM_CANCELLATIONS = 200


def test_a_cancelled_stream_frees_its_blocks(client: LoraplexClient) -> None:
    with client.stream(PROMPT, adapter="red", **ENDLESS) as stream:
        next(stream)
        assert client.server_info().load.running == 1
        stream.cancel()
        with pytest.raises(CancelledCallError):
            list(stream)

    await_idle(client)


async def test_a_cancelled_task_ends_its_unary_request_on_the_server(
    client: LoraplexClient, aclient: AsyncLoraplexClient
) -> None:
    task = asyncio.create_task(aclient.generate(PROMPT, **ENDLESS))
    while not client.server_info().load.running:  # noqa: ASYNC110  # the server tells only when asked
        await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await_idle(client)


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_a_deadline_ends_a_running_request(client: LoraplexClient, method: str) -> None:
    def ask() -> None:
        if method == "generate":
            client.generate(PROMPT, adapter="green", timeout_s=0.3, **ENDLESS)
        else:
            list(client.stream(PROMPT, adapter="green", timeout_s=0.3, **ENDLESS))

    started_s = time.monotonic()
    with pytest.raises(DeadlineError):
        ask()

    assert 0.3 <= time.monotonic() - started_s < 30
    await_idle(client)


async def test_a_deadline_ends_a_request_that_still_waits_and_leaves_the_running_ones_alone(
    tight_server: LiveServer, tight_client: LoraplexClient
) -> None:
    async with AsyncLoraplexClient(tight_server.target, timeout_s=60) as aclient:
        running = [
            await begin(aclient.stream(PROMPT, adapter=name, **ENDLESS_ON_TIGHT)) for name in ("red", "green")
        ]
        with pytest.raises(DeadlineError):
            await aclient.generate(PROMPT, adapter="red", timeout_s=0.3, **GREEDY)
        with pytest.raises(DeadlineError):  # here it waits for a slot, too
            await aclient.generate(PROMPT, adapter="blue", timeout_s=0.3, **GREEDY)

        eventually(lambda: tight_client.server_info().load.waiting == 0)
        assert tight_client.server_info().load.running == 2
        for stream in running:
            await anext(stream)
            stream.cancel()

    await_idle(tight_client)


def test_a_request_without_a_deadline_gets_the_servers(tight_server: LiveServer) -> None:
    with LoraplexClient(tight_server.target, timeout_s=None) as client:
        with pytest.raises(DeadlineError) as caught:
            client.generate(PROMPT, **ENDLESS_ON_TIGHT)
        assert caught.value.reason == "DEADLINE_EXCEEDED"  # told by the server: the client set none
        await_idle(client)


def test_a_deadline_that_has_passed_is_answered_without_running_the_request(client: LoraplexClient) -> None:
    for timeout_s in (0.0, 1e-6):
        with pytest.raises(DeadlineError):
            client.generate(PROMPT, timeout_s=timeout_s, **ENDLESS)

    await_idle(client)


def test_a_client_process_that_is_killed_frees_what_it_held(
    server: LiveServer, client: LoraplexClient
) -> None:
    code = (
        "import sys; from loraplex_client import LoraplexClient\n"
        "streams = [LoraplexClient(sys.argv[1]).stream('x', max_tokens=20000, ignore_eos=True) for _ in range(4)]\n"
        "for stream in streams: next(stream)\n"
        "print('running', flush=True)\n"
        "for event in streams[0]: pass\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, server.target], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        assert client.server_info().load.running == 4
        os.kill(process.pid, signal.SIGKILL)

    await_idle(client)


async def test_two_hundred_random_cancellations_leave_nothing_behind(own_server: StartServer) -> None:
    server = own_server()
    with server.client() as client:
        before = {name: client.generate(PROMPT, adapter=name, **GREEDY) for name in ("", *ADAPTERS)}
        assert client.server_info().load.adapter_slots_used == 3

        with ThreadPoolExecutor(4) as threads:
            loop = asyncio.get_running_loop()
            sync = [
                loop.run_in_executor(threads, _give_up_sync, client, seed)
                for seed in range(NUM_CANCELLATIONS // 2)
            ]
            async with AsyncLoraplexClient(server.target, timeout_s=60) as aclient:
                gate = asyncio.Semaphore(12)
                seeds = range(NUM_CANCELLATIONS // 2, NUM_CANCELLATIONS)
                ends = await asyncio.gather(*(_give_up_async(aclient, seed, gate) for seed in seeds), *sync)
                assert set(ends) == {"cancelled", "deadline"}

                await_idle(client)
                requests: list[dict[str, Any]] = [
                    {"prompt": PROMPT, "adapter": name, **GREEDY} for name in before
                ]
                after = await answer_all(aclient, requests)
        assert [answer.token_ids for answer in after] == [answer.token_ids for answer in before.values()]

        # A lease that was left would keep its adapter's slot and package.
        for name in ADAPTERS:
            client.adapters.delete(name)
        with pytest.raises(NotFoundError):
            client.generate(PROMPT, adapter="red")
        eventually(lambda: client.server_info().load.adapter_slots_used == 0)
        packages = server.data_dir / "adapters"
        eventually(lambda: [p for p in packages.iterdir() if not p.name.startswith(".")] == [])


def _plan(seed: int) -> tuple[str, dict[str, Any], int, float]:
    """Which adapter, which further options, after how many events and how many seconds to give up."""
    choice = random.Random(seed)
    options = dict(ENDLESS)
    if choice.random() < 0.3:
        options["stop"] = ["\0never"]
    if choice.random() < 0.3:
        options["logprobs"] = 3
    prompt = PROMPT * choice.choice((1, 1, 40, 150))  # some are cancelled within a chunked prefill
    return (
        prompt,
        {"adapter": choice.choice(("", *ADAPTERS)), **options},
        choice.randrange(30),
        choice.random(),
    )


def _give_up_sync(client: LoraplexClient, seed: int) -> str:
    prompt, options, num_events, chance = _plan(seed)
    if chance < 0.2:  # by its deadline
        with pytest.raises(DeadlineError):
            client.generate(prompt, timeout_s=chance / 4, **options)
        return "deadline"
    with client.stream(prompt, **options) as stream:
        for _, _ in zip(range(num_events), stream, strict=False):
            pass
    return "cancelled"


async def _give_up_async(client: AsyncLoraplexClient, seed: int, gate: asyncio.Semaphore) -> str:
    prompt, options, num_events, chance = _plan(seed)
    async with gate:
        if chance < 0.2:
            with pytest.raises(DeadlineError):
                await client.generate(prompt, timeout_s=chance / 4, **options)
            return "deadline"
        if chance < 0.5:  # at any moment, of any stage
            task = asyncio.create_task(client.generate(prompt, **options))
            await asyncio.sleep(chance / 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return "cancelled"
        async with client.stream(prompt, **options) as stream:
            for _ in range(num_events):
                await anext(stream)
        return "cancelled"
