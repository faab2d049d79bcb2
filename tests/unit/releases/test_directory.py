"""Names lead to versions at once, on other servers of the registry too; packages stay while anything needs them."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from loraplex_adapters.errors import (
    AdapterIncompatibleError,
    AdapterNotFoundError,
    AdapterUnavailableError,
    StorageError,
    VersionInUseError,
)
from loraplex_adapters.names import AdapterName
from loraplex_adapters.package import AdapterPackage
from loraplex_adapters.releases import Adapter, OnExisting, VersionState
from loraplex_server.releases.adapter_cache import AdapterCache
from loraplex_server.releases.directory import AdapterDirectory
from tests.unit.releases.conftest import SPEC, OpenFrontEnd, settle, version_of

FAQ = AdapterName("default", "faq")


async def test_a_request_gets_what_its_reference_names(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = open_front_end()
    await here.register("faq", package_folders[0])
    await here.register("faq", package_folders[1], OnExisting.ADD_VERSION, alias="canary")

    assert (await here.resolve("faq")).version.digest == digests[0]
    assert (await here.resolve("faq@canary")).version.digest == digests[1]
    assert (await here.resolve(f"faq@{digests[1][:12]}")).version.digest == digests[1]
    for unknown in ("shop", "faq@beta", f"faq@{digests[2]}"):
        with pytest.raises(AdapterNotFoundError):
            await here.resolve(unknown)


async def test_a_request_keeps_its_version_while_the_name_moves_on(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    """TRL #7017: an old version was unloaded while rollouts still named it."""
    here = open_front_end()
    await here.register("faq", package_folders[0])
    with here.directory.lease(await here.resolve("faq")) as held:
        await here.register("faq", package_folders[1], OnExisting.PROMOTE)
        assert (await here.resolve("faq")).version.digest == digests[1]  # in the same instant
        await here.directory.change(lambda: here.registry.delete_version(FAQ, digests[0]))
        await settle()
        assert held.version.digest == digests[0]
        assert here.stored() == sorted(digests[:2])
    await settle()
    assert here.stored() == [digests[1]]
    assert here.retired == [digests[0]]


async def test_a_deleted_adapters_package_leaves_with_its_last_request(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    """vLLM #54839: unloading dropped the registry's entry alone."""
    here = open_front_end()
    await here.register("faq", package_folders[0])
    with here.directory.lease(await here.resolve("faq")):
        await here.delete("faq")
        with pytest.raises(AdapterNotFoundError):
            await here.resolve("faq")
        await settle()
        assert here.stored() == [digests[0]]
    await settle()
    assert here.stored() == []
    assert here.packages.num_leases == 0


async def test_a_package_of_two_names_stays_for_the_other(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = open_front_end()
    await here.register("faq", package_folders[0])
    await here.register("team/copy", package_folders[0])
    await here.delete("faq")
    await settle()
    assert here.stored() == [digests[0]]
    await here.delete("team/copy")
    await settle()
    assert here.stored() == []


async def test_a_package_registered_again_while_it_leaves_stays(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = open_front_end()
    await here.register("faq", package_folders[0])
    with here.directory.lease(await here.resolve("faq")):
        await here.delete("faq")
        await here.register("faq", package_folders[0])
    await settle()
    assert here.stored() == [digests[0]]
    assert (await here.resolve("faq")).version.digest == digests[0]


async def test_a_change_that_is_refused_changes_nothing(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = open_front_end()
    before = await here.register("faq", package_folders[0])
    with pytest.raises(VersionInUseError):
        await here.directory.change(lambda: here.registry.delete_version(FAQ, digests[0]))
    assert await here.directory.get(FAQ) == before


async def test_another_servers_changes_are_followed(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    """vLLM #12174: runtime loading neither reached all replicas nor survived a restart."""
    here, there = open_front_end("a", shared=True), open_front_end("b", shared=True)
    await here.register("faq", package_folders[0])
    assert (await there.resolve("faq")).version.digest == digests[
        0
    ]  # unknown there: read, and the package fetched
    assert there.stored() == [digests[0]]

    await here.register("faq", package_folders[1], OnExisting.PROMOTE)
    assert (await there.resolve("faq")).version.digest == digests[0]  # not told yet
    await there.follow()
    assert (await there.resolve("faq")).version.digest == digests[1]

    await here.delete("faq")
    await there.follow()
    with pytest.raises(AdapterNotFoundError):
        await there.resolve("faq")
    await settle()
    assert there.stored() == []


async def test_what_another_server_changes_while_a_name_is_first_read_is_not_missed(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here, there = open_front_end("a"), open_front_end("b")
    await here.register("faq", package_folders[0])
    has_read, gate = threading.Event(), threading.Event()

    def read_slowly(name: AdapterName) -> Adapter:
        seen = there.registry.get(name)
        has_read.set()
        gate.wait(timeout=30)
        return seen

    directory = AdapterDirectory(
        there.registry, there.packages, SPEC, owns_registry=False, cache=AdapterCache(read_slowly)
    )
    reading = asyncio.create_task(directory.get(FAQ))
    await asyncio.to_thread(has_read.wait, 30)
    await here.register("faq", package_folders[1], OnExisting.PROMOTE)
    await directory.follow(there.registry.events(0, 1000))
    gate.set()

    assert (await reading).stable.digest == digests[1]


async def test_many_first_requests_fetch_a_package_once(
    open_front_end: OpenFrontEnd,
    package_folders: list[Path],
    digests: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = open_front_end("a", shared=True), open_front_end("b", shared=True)
    await here.register("faq", package_folders[0])
    fetched: list[str] = []
    fetch = there.store.fetch

    def fetch_and_count(digest: str) -> AdapterPackage:
        fetched.append(digest)
        return fetch(digest)

    monkeypatch.setattr(there.store, "fetch", fetch_and_count)

    await asyncio.gather(*(there.resolve("faq") for _ in range(20)))

    assert fetched == [digests[0]]


async def test_a_damaged_package_is_brought_back_from_the_shared_home(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = open_front_end("a", shared=True)
    await here.register("faq", package_folders[0])
    weights = here.data / "adapters" / digests[0] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])

    await here.directory.mark_failed(FAQ, digests[0])

    assert here.store.verify(digests[0]).digest == digests[0]
    assert (await here.resolve("faq")).version.state is VersionState.READY


async def test_a_package_that_cannot_be_had_fails_its_version_alone(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = open_front_end()
    await here.register("faq", package_folders[0])
    await here.register("faq", package_folders[1], OnExisting.ADD_VERSION, alias="canary")

    await here.directory.mark_failed(FAQ, digests[0])

    with pytest.raises(AdapterUnavailableError, match="register it again"):
        await here.resolve("faq")
    assert (await here.resolve("faq@canary")).version.digest == digests[1]
    mended = await here.register("faq", package_folders[0])
    assert mended.stable.state is VersionState.READY
    assert (await here.resolve("faq")).version.digest == digests[0]


async def test_a_version_for_another_base_is_never_served(
    open_front_end: OpenFrontEnd, package_folders: list[Path]
) -> None:
    """vLLM #34186, #55193, #48019: what does not fit the base was served as the base, with 200 OK."""
    here = open_front_end()
    await here.register("faq", package_folders[0])
    here.directory = AdapterDirectory(here.registry, here.packages, replace(SPEC, fingerprint="e" * 64))
    with pytest.raises(AdapterIncompatibleError, match="another base"):
        await here.resolve("faq")


async def test_listeners_are_told_what_was_and_what_is(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = open_front_end()
    told: list[tuple[str, str, str]] = []

    def stable(adapter: Adapter | None) -> str:
        return adapter.stable.digest if adapter is not None else ""

    here.directory.subscribe(
        lambda name, before, after: told.append((str(name), stable(before), stable(after)))
    )
    await here.register("faq", package_folders[0])
    await here.register("faq", package_folders[1], OnExisting.PROMOTE)
    await here.delete("faq")

    assert told == [("faq", "", digests[0]), ("faq", digests[0], digests[1]), ("faq", digests[1], "")]


async def test_a_cancelled_change_takes_effect_before_its_caller_goes_on(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    """Else what the caller holds for the change would be let go while the write is under way."""
    here = open_front_end()
    begun, may_write = threading.Event(), threading.Event()
    version = version_of(here.store, package_folders[0])

    def write_slowly() -> Adapter:
        begun.set()
        may_write.wait(30)
        return here.registry.register(FAQ, version)

    with here.packages.lease(version.digest):
        change = asyncio.create_task(here.directory.change(write_slowly))
        await asyncio.to_thread(begun.wait, 30)
        change.cancel()
        await asyncio.sleep(0.02)
        assert not change.done()
        may_write.set()
        with pytest.raises(asyncio.CancelledError):
            await change
        assert (await here.resolve("faq")).version.digest == digests[0]


async def test_a_package_that_another_server_registers_while_it_is_deleted_is_put_back(
    open_front_end: OpenFrontEnd,
    package_folders: list[Path],
    digests: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = open_front_end("a", shared=True), open_front_end("b", shared=True)
    await here.register("faq", package_folders[0])
    delete_shared = here.store.delete_shared

    def delete_late(digest: str) -> None:
        there.registry.register(AdapterName("default", "again"), version_of(there.store, package_folders[0]))
        delete_shared(digest)

    monkeypatch.setattr(here.store, "delete_shared", delete_late)
    await here.delete("faq")
    await settle()
    third = open_front_end("c", shared=True)
    assert (await third.resolve("again")).version.digest == digests[0]


async def test_a_full_disk_is_told_as_such_where_a_package_is_fetched(
    open_front_end: OpenFrontEnd, package_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = open_front_end("a", shared=True), open_front_end("b", shared=True)
    await here.register("faq", package_folders[0])

    def fail(digest: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(there.store, "fetch", fail)
    with pytest.raises(StorageError, match="No space left"):
        await there.resolve("faq")
