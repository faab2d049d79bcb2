"""Where weights are, as the engine tells, and who waits for them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from loraplex_adapters.errors import AdapterTooLargeError, AdapterUnavailableError
from loraplex_server.engine.messages import AdapterLoadFailure, AdapterMove, EngineStats
from loraplex_server.errors import EngineRestartedError
from loraplex_server.releases.residency_view import Residency, ResidencyView

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def moved(digest: str, tier: Any, read_s: float = 0.0, copy_s: float = 0.0) -> EngineStats:
    return EngineStats(residency=[AdapterMove(digest, tier, read_s, copy_s)])


@pytest.fixture
def view() -> ResidencyView:
    return ResidencyView(clock=lambda: NOW, capacity=3)


def test_an_adapter_is_where_the_engine_last_said(view: ResidencyView) -> None:
    assert view.of("a") == Residency()
    view.engine_step(moved("a", "host", read_s=0.5))
    view.engine_step(moved("a", "slot", copy_s=0.25))
    assert view.of("a") == Residency("slot", 0.5, 0.25, NOW)
    view.engine_step(moved("a", "host"))
    assert view.of("a") == Residency("host", 0.5, 0.25, NOW)
    assert view.slowest_load_s == 0.75
    view.engine_gone(EngineRestartedError("gone"))
    assert view.of("a") == Residency()


async def test_who_waits_is_woken_when_it_is_in_a_slot(view: ResidencyView) -> None:
    waits = [asyncio.create_task(view.wait_for_slot("a")) for _ in range(3)]
    await asyncio.sleep(0)
    view.engine_step(moved("a", "host"))
    await asyncio.sleep(0)
    assert not any(wait.done() for wait in waits)
    view.engine_step(moved("a", "slot"))
    await asyncio.gather(*waits)
    await view.wait_for_slot("a")  # it is there


@pytest.mark.parametrize(
    ("reason", "error"),
    [("ADAPTER_TOO_LARGE", AdapterTooLargeError), ("ADAPTER_UNAVAILABLE", AdapterUnavailableError)],
)
async def test_who_waits_is_told_why_it_will_not_come(
    view: ResidencyView, reason: str, error: type[Exception]
) -> None:
    wait = asyncio.create_task(view.wait_for_slot("a"))
    await asyncio.sleep(0)
    view.engine_step(EngineStats(load_failures=[AdapterLoadFailure("a", reason, "because")]))
    with pytest.raises(error, match="because"):
        await wait


async def test_a_dead_engine_is_told_to_who_waits(view: ResidencyView) -> None:
    wait = asyncio.create_task(view.wait_for_slot("a"))
    await asyncio.sleep(0)
    view.engine_gone(EngineRestartedError("gone"))
    with pytest.raises(EngineRestartedError):
        await wait


async def test_who_gives_up_leaves_nothing(view: ResidencyView) -> None:
    wait = asyncio.create_task(view.wait_for_slot("a"))
    await asyncio.sleep(0)
    wait.cancel()
    await asyncio.gather(wait, return_exceptions=True)
    assert view.num_waiting == 0


def test_memory_is_bounded_and_what_is_above_disk_is_kept(view: ResidencyView) -> None:
    for digest in "abcdef":
        view.engine_step(moved(digest, "slot", copy_s=1.0))
        if digest != "a":
            view.engine_step(moved(digest, "disk"))
    assert view.of("a").tier == "slot"
    assert view.of("b") == Residency()
    assert view.of("f").copy_s == 1.0
