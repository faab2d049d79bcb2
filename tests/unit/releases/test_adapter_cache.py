"""Known adapters are looked up in memory, and never in a state that has passed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from loraplex_adapters.errors import AdapterNotFoundError, StorageError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.releases import Adapter
from loraplex_server.releases.adapter_cache import AdapterCache
from tests.unit.adapters.test_releases import NEW, OLD, adapter

NAME = AdapterName("default", "faq")


class Registry:
    """What `read` sees; a read can be held up while it is under way."""

    def __init__(self) -> None:
        self.held: Adapter | None = adapter(OLD)
        self.is_lost = False
        self.num_reads = 0
        self.gate = threading.Event()
        self.gate.set()
        self.has_read = threading.Event()

    def read(self, name: AdapterName) -> Adapter:
        self.num_reads += 1
        seen = self.held
        self.has_read.set()
        self.gate.wait(timeout=30)
        if self.is_lost:
            raise StorageError("the registry cannot be used")
        if seen is None:
            raise AdapterNotFoundError(f"no adapter '{name}'")
        return replace(seen, name=name)


@pytest.fixture
def registry() -> Registry:
    return Registry()


async def test_what_is_known_is_not_read_again(registry: Registry) -> None:
    cache = AdapterCache(registry.read)
    assert cache.peek(NAME) is None

    first = await cache.get(NAME)

    assert await cache.get(NAME) is first is cache.peek(NAME)
    assert registry.num_reads == 1


async def test_many_who_ask_at_once_cause_one_read(registry: Registry) -> None:
    """Like loads: concurrent first requests of one adapter are one piece of work."""
    cache = AdapterCache(registry.read)

    found = await asyncio.gather(*(cache.get(NAME) for _ in range(20)))

    assert registry.num_reads == 1
    assert len({id(each) for each in found}) == 1


async def test_a_lost_database_is_told_for_unknown_names_alone(registry: Registry) -> None:
    cache = AdapterCache(registry.read)
    await cache.get(NAME)
    registry.is_lost = True

    assert (await cache.get(NAME)).stable.digest == OLD
    with pytest.raises(StorageError):
        await cache.get(AdapterName("default", "unknown"))


async def test_an_unknown_name_is_asked_for_every_time(registry: Registry) -> None:
    cache = AdapterCache(registry.read)
    registry.held = None
    for _ in range(2):
        with pytest.raises(AdapterNotFoundError):
            await cache.get(NAME)
    registry.held = adapter(OLD)

    assert (await cache.get(NAME)).stable.digest == OLD


async def test_a_read_that_a_deletion_overtakes_brings_nothing_back(registry: Registry) -> None:
    """What a slow read saw before the deletion must not be served after it."""
    cache = AdapterCache(registry.read)
    registry.gate.clear()
    reading = asyncio.create_task(cache.get(NAME))
    await asyncio.to_thread(registry.has_read.wait, 30)
    registry.held = None

    cache.drop(NAME, revision=2)
    registry.gate.set()

    with pytest.raises(AdapterNotFoundError):
        await reading
    assert cache.peek(NAME) is None


async def test_a_read_is_done_again_for_a_change_of_its_own_adapter_alone(registry: Registry) -> None:
    """Else a slow database and steady changes of others would keep a cold name waiting for ever."""
    cache = AdapterCache(registry.read)
    registry.gate.clear()
    reading = asyncio.create_task(cache.get(NAME))
    await asyncio.to_thread(registry.has_read.wait, 30)

    cache.drop(AdapterName("default", "other"), revision=2)
    cache.changed(AdapterName("default", "another"))
    registry.gate.set()

    assert (await reading).stable.digest == OLD
    assert registry.num_reads == 1


@pytest.mark.parametrize("tell", [lambda cache: cache.changed(NAME), AdapterCache.clear])
async def test_a_read_that_a_change_elsewhere_overtakes_is_done_again(
    registry: Registry, tell: Callable[[AdapterCache], None]
) -> None:
    cache = AdapterCache(registry.read)
    registry.gate.clear()
    reading = asyncio.create_task(cache.get(NAME))
    await asyncio.to_thread(registry.has_read.wait, 30)
    registry.held = replace(adapter(NEW, OLD), revision=5)

    tell(cache)
    registry.gate.set()

    assert await reading is cache.peek(NAME)
    assert (await reading).revision == 5


async def test_an_older_state_never_replaces_a_newer_one(registry: Registry) -> None:
    cache = AdapterCache(registry.read)
    registry.held = replace(adapter(NEW, OLD), revision=5)
    newest = await cache.get(NAME)
    registry.held = replace(adapter(OLD), revision=4)

    assert await cache.refresh(NAME) is newest
    assert cache.drop(NAME, revision=4) is None
    assert cache.peek(NAME) is newest
    assert cache.drop(NAME, revision=6) is newest


async def test_memory_is_bounded_whatever_is_registered(registry: Registry) -> None:
    cache = AdapterCache(registry.read, capacity=3)
    names = [AdapterName("default", f"a{index}") for index in range(10)]
    for name in names:
        await cache.get(name)
    await cache.get(names[-3])
    await cache.get(AdapterName("default", "one-more"))

    assert [cache.peek(name) is not None for name in names] == [False] * 7 + [True, False, True]
