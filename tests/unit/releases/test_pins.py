"""What is pinned stays resident: across engines, through a lost database, and never at the cost of everybody else."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from loraplex_adapters.errors import StorageError, TooManyPinnedError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import PinLimits
from loraplex_adapters.releases import Adapter, OnExisting, TrafficShare
from loraplex_server.releases import pins as pins_module
from loraplex_server.releases.pins import PinnedVersions
from tests.unit.releases.conftest import SPEC, FrontEnd, OpenFrontEnd

FAQ = AdapterName("default", "faq")


async def pinned_front_end(open_front_end: OpenFrontEnd, folders: list[Path]) -> FrontEnd:
    here = open_front_end()
    await here.register("faq", folders[0])
    here.registry.set_pinned(FAQ, True, max_pinned=8)
    return here


async def until(told: list[list[str]], expected: list[list[str]]) -> None:
    async with asyncio.timeout(30):
        while told != expected:  # noqa: ASYNC110  # nothing else tells
            await asyncio.sleep(0.002)


def watch(here: FrontEnd) -> tuple[PinnedVersions, list[list[str]]]:
    told: list[list[str]] = []
    return PinnedVersions(here.registry, here.packages, SPEC.fingerprint, told.append), told


async def test_a_new_engine_is_told_at_once_though_the_database_is_lost(
    open_front_end: OpenFrontEnd,
    package_folders: list[Path],
    digests: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = await pinned_front_end(open_front_end, package_folders)
    pins, told = watch(here)
    pins.refresh()
    await until(told, [[digests[0]]])
    read = here.registry.pinned

    def lost() -> list[Adapter]:
        raise StorageError("the registry cannot be used; try again later")

    monkeypatch.setattr(pins_module, "_RETRY_S", 0.01)
    monkeypatch.setattr(here.registry, "pinned", lost)
    pins.engine_restarted()
    assert told == [[digests[0]]] * 2

    here.registry.promote(FAQ, here.registry.get(FAQ).stable.digest, alias="canary")
    await here.register("faq", package_folders[1], OnExisting.PROMOTE)
    monkeypatch.setattr(here.registry, "pinned", read)
    await until(told, [[digests[0]], [digests[0]], [digests[1]]])  # asked again by itself
    await pins.close()


async def test_what_the_engine_forgot_is_told_again_if_it_is_pinned_again_before_anybody_looked(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = await pinned_front_end(open_front_end, package_folders)
    pins, told = watch(here)
    here.packages.on_retired = pins.package_retired
    pins.refresh()
    await until(told, [[digests[0]]])

    await here.delete("faq")
    await here.register("faq", package_folders[0])
    here.registry.set_pinned(FAQ, True, max_pinned=8)
    pins.refresh()

    await until(told, [[digests[0]], [digests[0]]])
    await pins.close()


async def test_pins_leave_a_slot_and_room_for_the_largest_adapter(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = await pinned_front_end(open_front_end, package_folders)
    await here.register("faq", package_folders[1], OnExisting.ADD_VERSION, alias="canary")
    shares = [TrafficShare("stable", 1), TrafficShare("canary", 1)]
    size = here.registry.get(FAQ).stable.num_elements

    here.registry.pin_limits = PinLimits(1, 100 * size)
    with pytest.raises(TooManyPinnedError, match="2 adapter slots, and at most 1"):
        here.registry.split(FAQ, shares)
    here.registry.pin_limits = PinLimits(8, 3 * size - 1)
    with pytest.raises(TooManyPinnedError, match="no room for the largest"):
        here.registry.split(FAQ, shares)
    here.registry.pin_limits = PinLimits(8, 3 * size)
    here.registry.split(FAQ, shares)

    here.registry.promote(FAQ, digests[1])
    here.registry.pin_limits = PinLimits(0, 0)
    assert here.registry.rollback(FAQ).stable.digest == digests[0]  # must always be possible


async def test_a_registration_that_promotes_a_pinned_name_leaves_room_as_any_promotion_does(
    open_front_end: OpenFrontEnd, package_folders: list[Path], digests: list[str]
) -> None:
    here = await pinned_front_end(open_front_end, package_folders)
    size = here.registry.get(FAQ).stable.num_elements

    here.registry.pin_limits = PinLimits(8, 2 * size - 1)
    with pytest.raises(TooManyPinnedError, match="no room for the largest"):
        await here.register("faq", package_folders[1], OnExisting.PROMOTE)
    assert [version.digest for version in here.registry.get(FAQ).versions] == [digests[0]]

    await here.register("faq", package_folders[1], OnExisting.ADD_VERSION)
    with pytest.raises(TooManyPinnedError, match="no room for the largest"):
        await here.register("faq", package_folders[1], OnExisting.PROMOTE)

    here.registry.pin_limits = PinLimits(8, 2 * size)
    promoted = await here.register("faq", package_folders[1], OnExisting.PROMOTE)
    assert promoted.stable.digest == digests[1]


async def test_a_rollback_over_the_limit_costs_the_last_pin_and_not_everybody_elses_slot(
    open_front_end: OpenFrontEnd,
    package_folders: list[Path],
    digests: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = open_front_end()
    for name, folder in zip("abc", package_folders, strict=True):
        await here.register(name, folder)
    await here.register("c", package_folders[0], OnExisting.PROMOTE)
    here.registry.pin_limits = PinLimits(2, 1_000_000)
    for name in "abc":
        here.registry.set_pinned(AdapterName("default", name), True, max_pinned=2)
    pins, told = watch(here)

    assert here.registry.rollback(AdapterName("default", "c")).stable.digest == digests[2]
    with caplog.at_level(logging.WARNING):
        pins.refresh()
        await until(told, [sorted(digests[:2])])

    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert (warning.message, warning.left_out) == ("pinned adapters left without a slot of their own", "c")  # type: ignore[attr-defined]
    assert pins.left_out == {digests[2]: "c"}

    here.registry.set_pinned(AdapterName("default", "a"), False, max_pinned=2)
    pins.refresh()
    await until(told, [sorted(digests[:2]), sorted(digests[1:])])
    assert not pins.left_out
    await pins.close()


@pytest.mark.parametrize(
    ("slots", "room_for", "expected"), [(0, 9, 0), (2, 9, 2), (9, 3, 2), (9, 2, 1), (9, 0, 0)]
)
async def test_a_server_of_fewer_slots_or_a_smaller_arena_pins_the_first_by_name_and_leaves_room_for_the_largest(
    open_front_end: OpenFrontEnd,
    package_folders: list[Path],
    digests: list[str],
    slots: int,
    room_for: int,
    expected: int,
) -> None:
    here = open_front_end()
    for name, folder in zip("abc", package_folders, strict=True):
        size = (await here.register(name, folder)).stable.num_elements
        here.registry.set_pinned(AdapterName("default", name), True, max_pinned=8)
    here.registry.pin_limits = PinLimits(slots, room_for * size)
    pins, told = watch(here)

    pins.refresh()
    async with asyncio.timeout(30):
        while list(pins.left_out) != digests[expected:]:  # noqa: ASYNC110  # nothing else tells
            await asyncio.sleep(0.002)

    assert told == ([sorted(digests[:expected])] if expected else [])
    await pins.close()
