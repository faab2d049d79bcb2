"""Two thousand registered adapters, sixteen resident: nobody fails, nobody starves, a start costs what it did."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from benchmarks.adapter_variants import write_variant
from loraplex_client import AsyncLoraplexClient
from tests.integration.live_server import LiveServer, await_idle, running_server
from tests.integration.streams import PROMPT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_ADAPTERS, NUM_SLOTS = 2000, 16
NUM_REQUESTS, CONCURRENCY = 2000, 48
LONGEST_WAIT_S = 30.0  # of any request; they take milliseconds, and none may wait for the end of the traffic
SETTINGS = {"adapter_slots": NUM_SLOTS, "max_running": 32, "golden_prompts": False}


def test_two_thousand_adapters_share_sixteen_slots(tiny_base: Path, packages: Path, tmp_path: Path) -> None:
    """Row 19. KServe #6174: seven adapters and the base were more than a gateway's routes could hold."""
    with running_server(tiny_base, tmp_path / "few", **SETTINGS) as server:
        few_bytes = front_end_bytes(server)
    started_s = time.monotonic()
    with running_server(tiny_base, tmp_path / "few", **SETTINGS):
        few_start_s = time.monotonic() - started_s

    with running_server(tiny_base, tmp_path / "many", adapter_roots=tmp_path, **SETTINGS) as server:
        names = asyncio.run(register_many(server, packages / "red", tmp_path / "variants"))
    started_s = time.monotonic()
    with running_server(tiny_base, tmp_path / "many", **SETTINGS) as server, server.client() as client:
        many_start_s = time.monotonic() - started_s
        many_bytes = front_end_bytes(server)

        waits_s = asyncio.run(ask(server, names))

        await_idle(client)
        assert server.metric("loraplex_adapters_registered") == NUM_ADAPTERS
        assert server.metric("loraplex_adapter_evictions_total") > NUM_SLOTS
    assert max(waits_s) < LONGEST_WAIT_S
    assert many_bytes < few_bytes + 32 * 2**20, "memory must not grow with what is registered"
    assert many_start_s < 2 * few_start_s + 5, "a start must not read what is registered"


async def register_many(server: LiveServer, package: Path, folder: Path) -> list[str]:
    """NUM_ADAPTERS adapters with weights of their own; their names."""
    names = [f"team-{number % 10}/adapter-{number}" for number in range(NUM_ADAPTERS)]
    gate = asyncio.Semaphore(8)

    async def register(client: AsyncLoraplexClient, number: int) -> None:
        async with gate:
            variant = await asyncio.to_thread(write_variant, package, folder, number)
            await client.adapters.create(names[number], path=variant)

    async with AsyncLoraplexClient(server.target, timeout_s=600) as client:
        await asyncio.gather(*(register(client, number) for number in range(NUM_ADAPTERS)))
    return names


async def ask(server: LiveServer, names: Sequence[str]) -> list[float]:
    """Requests by Zipf's law; how long each took."""
    weights = [1 / rank for rank in range(1, len(names) + 1)]
    asked = random.Random(3).choices(names, weights, k=NUM_REQUESTS)
    assert len(set(asked)) > 10 * NUM_SLOTS
    assert Counter(asked).most_common(1)[0][1] > NUM_REQUESTS / 20
    gate = asyncio.Semaphore(CONCURRENCY)

    async def answer(client: AsyncLoraplexClient, name: str) -> float:
        async with gate:
            began_s = time.monotonic()
            completion = await client.generate(
                PROMPT, adapter=name, temperature=0, max_tokens=4, ignore_eos=True
            )
            assert completion.usage.completion_tokens == 4
            return time.monotonic() - began_s

    async with AsyncLoraplexClient(server.target, timeout_s=600) as client:
        return await asyncio.gather(*(answer(client, name) for name in asked))


def front_end_bytes(server: LiveServer) -> int:
    """Resident memory of the server's own process, the engine's not counted."""
    return int(psutil.Process(server.process.pid).memory_info().rss)
