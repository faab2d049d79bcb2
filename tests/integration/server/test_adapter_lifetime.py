"""Adapters that come, go, break and take turns while requests run on them."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from loraplex_client import (
    AsyncLoraplexClient,
    Completion,
    LoraplexClient,
    NotFoundError,
    PreconditionError,
    Tier,
    VersionState,
)
from tests.integration.conftest import ADAPTERS, NewAdapter, register_all
from tests.integration.live_server import LiveServer, await_idle, eventually, running_server
from tests.integration.streams import GREEDY, PROMPT, answer_all, begin, collect_async, unchanged_streams

LONG: dict[str, Any] = {**GREEDY, "max_tokens": 600}


async def test_a_stream_finishes_on_an_adapter_that_is_deleted_meanwhile(
    server: LiveServer, client: LoraplexClient, aclient: AsyncLoraplexClient, new_adapter: NewAdapter
) -> None:
    """Row 16. vLLM #54839: unloading dropped the registry's entry alone."""
    adapter = client.adapters.create("leaving", new_adapter("leaving"))
    whole = client.generate(PROMPT, adapter="leaving", **LONG)
    slots_used = client.server_info().load.adapter_slots_used

    stream = await begin(aclient.stream(PROMPT, adapter="leaving", **LONG))
    await aclient.adapters.delete("leaving")
    with pytest.raises(NotFoundError):
        await aclient.generate(PROMPT, adapter="leaving", **GREEDY)
    rest = [event async for event in stream]

    assert rest[-1].usage.completion_tokens == whole.usage.completion_tokens == 600  # type: ignore[union-attr]
    eventually(lambda: not (server.data_dir / "adapters" / adapter.digest).exists())
    eventually(lambda: client.server_info().load.adapter_slots_used == slots_used - 1)
    await_idle(client)


async def test_requests_that_began_before_a_name_changed_hands_finish_on_the_old_weights(
    client: LoraplexClient, aclient: AsyncLoraplexClient, packages: Path
) -> None:
    """Rows 16 and 17. TRL #7017: an old version was unloaded while rollouts still named it."""
    old, new = (client.generate(PROMPT, adapter=name, **LONG) for name in ("red", "green"))
    client.adapters.create("moving", packages / "red")

    before = [asyncio.create_task(aclient.generate(PROMPT, adapter="moving", **LONG)) for _ in range(4)]
    async with await begin(aclient.stream(PROMPT, adapter="moving", **LONG)):
        await aclient.adapters.delete("moving")
        await aclient.adapters.create("moving", packages / "green")
        after = await aclient.generate(PROMPT, adapter="moving", **LONG)

    assert {(await task).token_ids for task in before} == {old.token_ids}
    assert after.token_ids == new.token_ids
    client.adapters.delete("moving")


@pytest.fixture(scope="module")
def cold_server(
    tiny_base: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server that asks no golden prompts, so that what is registered stays cold."""
    settings = {"adapter_roots": packages, "golden_prompts": False}
    with running_server(tiny_base, tmp_path_factory.mktemp("cold-server"), **settings) as live:
        register_all(live, packages)
        yield live


async def test_many_first_requests_for_a_cold_adapter_load_it_once(
    cold_server: LiveServer, new_adapter: NewAdapter
) -> None:
    """Row 18. SkyRL #1606: weights were read again on every step of a request that named them."""
    server = cold_server
    async with AsyncLoraplexClient(server.target, timeout_s=60) as aclient:
        cold = await aclient.adapters.create("cold", new_adapter("cold"))
        assert cold.version.residency.tier is Tier.DISK

        async with unchanged_streams(server, ADAPTERS):
            loads = server.metric("loraplex_adapter_loads_total")
            answers = await answer_all(aclient, [{"prompt": PROMPT, "adapter": "cold", **GREEDY}] * 20)

        residency = (await aclient.adapters.get("cold")).stable.residency
        await aclient.adapters.delete("cold")

    assert len({answer.token_ids for answer in answers}) == 1
    assert server.metric("loraplex_adapter_loads_total") == loads + 1
    assert any(answer.timings.adapter_load_seconds > 0 for answer in answers)
    assert residency.tier is Tier.SLOT
    assert residency.read_seconds > 0
    assert residency.copy_seconds > 0


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
async def test_a_package_that_breaks_on_disk_fails_its_own_requests_alone(
    cold_server: LiveServer, new_adapter: NewAdapter, packages: Path, damage: str
) -> None:
    """vLLM #5105: files that were missing under load ended the engine of everybody."""
    server = cold_server
    async with AsyncLoraplexClient(server.target, timeout_s=60) as aclient:
        with server.client() as client:
            await break_package(server, client, aclient, new_adapter(f"breaking-{damage}"), packages, damage)


async def break_package(
    server: LiveServer,
    client: LoraplexClient,
    aclient: AsyncLoraplexClient,
    folder: Path,
    packages: Path,
    damage: str,
) -> None:
    """Damage what was just registered from `folder`, ask for it, and mend it."""
    name = f"breaking-{secrets.token_hex(4)}"  # where the test is asked once more, the first one may be there yet
    adapter = client.adapters.create(name, folder)
    stored = server.data_dir / "adapters" / adapter.digest
    (image,) = (server.data_dir / "images").glob(f"*/{adapter.digest}")
    image.unlink()  # while there is one, the package is not read
    if damage == "missing":
        shutil.rmtree(stored)
    elif damage == "truncated":
        (stored / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    else:
        shutil.copy(packages / "red" / "adapter_model.safetensors", stored)
    good = client.generate(PROMPT, adapter="green", **GREEDY)

    others = asyncio.create_task(answer_all(aclient, [{"prompt": PROMPT, "adapter": "green", **GREEDY}] * 4))
    with pytest.raises(PreconditionError) as caught:
        await aclient.generate(PROMPT, adapter=name, **GREEDY)

    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.reason == "ADAPTER_UNAVAILABLE"
    assert str(server.data_dir) not in caught.value.message
    assert {answer.token_ids for answer in await others} == {good.token_ids}
    assert client.adapters.get(name).stable.state is VersionState.FAILED
    client.adapters.create(name, folder)  # mends it
    assert client.adapters.get(name).stable.state is VersionState.READY
    assert client.generate(PROMPT, adapter=name, **GREEDY).adapter_digest == adapter.digest
    client.adapters.delete(name)


@pytest.fixture
def many_adapters(tight_client: LoraplexClient, new_adapter: NewAdapter) -> list[str]:
    """More names than the tight server has slots: its own three and two of ranks that need other extents."""
    for number, rank in enumerate((1, 9)):
        folder = new_adapter(f"extra{number}", r=rank, target_modules=["q_proj", "down_proj"])
        tight_client.adapters.upload(f"extra{number}", folder)
    return [*ADAPTERS, "extra0", "extra1"]


async def test_more_adapters_than_slots_take_turns_and_answer_as_before(
    tight_server: LiveServer, tight_client: LoraplexClient, many_adapters: list[str]
) -> None:
    """Row 19. SGLang #8162, #13349: twice as many adapters as slots made first tokens 156 times slower."""

    def ask(name: str) -> Completion:
        return tight_client.generate(PROMPT, adapter=name, **GREEDY)

    first = {name: ask(name).token_ids for name in many_adapters}
    evictions = tight_server.metric("loraplex_adapter_evictions_total")

    in_turn = [(name, ask(name).token_ids) for _ in range(3) for name in many_adapters]
    async with AsyncLoraplexClient(tight_server.target, timeout_s=60) as aclient:
        requests: list[dict[str, Any]] = [
            {"prompt": PROMPT, "adapter": name, **GREEDY} for name in many_adapters * 3
        ]
        at_once = await answer_all(aclient, requests, concurrency=4)

    assert len(set(first.values())) == 5
    assert all(token_ids == first[name] for name, token_ids in in_turn)
    assert [answer.token_ids for answer in at_once] == [first[name] for name in many_adapters * 3]
    # A round of five over two slots with least-recently-used eviction never finds its adapter resident.
    assert tight_server.metric("loraplex_adapter_evictions_total") >= evictions + 15
    assert tight_client.server_info().load.adapter_slots_used == 2
    for name in ("extra0", "extra1"):
        tight_client.adapters.delete(name)


async def test_an_adapter_in_use_is_not_evicted_for_another(
    tight_server: LiveServer, tight_client: LoraplexClient
) -> None:
    """Row 19."""
    alone = {name: tight_client.generate(PROMPT, adapter=name, **LONG).token_ids for name in ADAPTERS}

    async with AsyncLoraplexClient(tight_server.target, timeout_s=60) as aclient:
        streams = [aclient.stream(PROMPT, adapter=name, **LONG) for name in ("red", "green")]
        waiting = asyncio.create_task(aclient.generate(PROMPT, adapter="blue", **LONG))
        first, second = await asyncio.gather(*map(collect_async, streams))
        third = await waiting

    assert [first.token_ids, second.token_ids, third.token_ids] == list(alone.values())
