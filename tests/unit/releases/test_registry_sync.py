"""A server follows the registry: within a poll, through a lost database, and without what it did itself."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from loraplex_adapters.errors import AdapterNotFoundError, EventsExpiredError, StorageError
from loraplex_adapters.releases import OnExisting
from loraplex_server.errors import DrainingError
from loraplex_server.releases import registry_sync
from loraplex_server.releases.registry_sync import RegistrySync
from tests.unit.releases.conftest import FrontEnd, OpenFrontEnd

POLL_S = 0.01


@asynccontextmanager
async def following(front_end: FrontEnd) -> AsyncIterator[RegistrySync]:
    sync = RegistrySync(front_end.registry, front_end.directory, POLL_S)
    task = asyncio.create_task(sync.run())
    try:
        yield sync
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def reach(sync: RegistrySync, revision: int) -> None:
    await asyncio.wait_for(sync.wait_beyond(revision - 1), 30)


async def test_what_another_server_does_takes_effect(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here, there = open_front_end("a", shared=True), open_front_end("b", shared=True)
    await here.register("faq", package_folders[0])
    async with following(there) as sync:
        assert (await there.resolve("faq")).version.digest == digests[0]
        await here.register("faq", package_folders[1], OnExisting.PROMOTE)
        await reach(sync, here.registry.revision())
        assert (await there.resolve("faq")).version.digest == digests[1]
        await here.delete("faq")
        await reach(sync, here.registry.revision())
        with pytest.raises(AdapterNotFoundError):
            await there.resolve("faq")
        assert there.directory.num_adapters == 0


async def test_a_lost_database_is_survived(
    open_front_end: OpenFrontEnd,
    package_folders: list[Path],
    digests: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = open_front_end("a", shared=True), open_front_end("b", shared=True)
    await here.register("faq", package_folders[0])
    lost = [True]
    revision = there.registry.revision

    def fail_or_read() -> int:
        if lost[0]:
            raise StorageError("the registry cannot be used; try again later")
        return revision()

    async with following(there) as sync:
        await there.resolve("faq")
        monkeypatch.setattr(there.registry, "revision", fail_or_read)
        await here.register("faq", package_folders[1], OnExisting.PROMOTE)
        await asyncio.sleep(5 * POLL_S)
        assert (await there.resolve("faq")).version.digest == digests[0]  # what was known is served
        lost[0] = False
        await reach(sync, here.registry.revision())
        assert (await there.resolve("faq")).version.digest == digests[1]


async def test_missed_events_are_made_up_for(
    open_front_end: OpenFrontEnd,
    package_folders: list[Path],
    digests: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = open_front_end("a", shared=True), open_front_end("b", shared=True)
    await here.register("faq", package_folders[0])
    await there.resolve("faq")

    def expired(*arguments: Any) -> None:
        raise EventsExpiredError("the events are gone")

    async with following(there) as sync:
        monkeypatch.setattr(there.registry, "events", expired)
        await here.register("faq", package_folders[1], OnExisting.PROMOTE)
        await reach(sync, here.registry.revision())
    assert (await there.resolve("faq")).version.digest == digests[1]


async def test_those_who_watch_are_told_that_the_server_stops(open_front_end: OpenFrontEnd) -> None:
    async with following(open_front_end()) as sync:
        watch = asyncio.create_task(sync.wait_beyond(10))
        await asyncio.sleep(0)
        await sync.close()
        with pytest.raises(DrainingError):
            await watch


def test_servers_look_often_enough_to_converge_within_a_second() -> None:
    """Two looks and what they take. How long it is: `python -m benchmarks.convergence`."""
    assert inspect.signature(RegistrySync).parameters["poll_s"].default == registry_sync.POLL_S
    assert 2 * registry_sync.POLL_S < 1
