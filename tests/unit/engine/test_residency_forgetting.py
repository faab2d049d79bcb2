"""Adapters that are given up: forgotten, or waited for by nobody any more."""

from __future__ import annotations

import pytest

from tests.unit.engine.residency_case import UNIT, Build, Packages, acquire, settle, touch, wait_until


def test_forgetting_evicts_an_idle_adapter_at_once_from_slot_and_host(build: Build) -> None:
    residency = build()
    touch(residency, "a")

    residency.forget("a")

    assert residency.num_slots_used == 0
    assert residency.host_bytes_used == 0
    assert residency.tier("a") == "disk"


def test_forgetting_an_adapter_in_use_evicts_it_with_its_last_lease(build: Build) -> None:
    residency = build()
    acquire(residency, "a")
    acquire(residency, "a")

    residency.forget("a")
    residency.release("a")
    assert residency.active_digests == ["a"]
    residency.release("a")

    assert residency.active_digests == []


def test_an_adapter_that_is_named_again_is_no_longer_forgotten(build: Build) -> None:
    residency = build()
    acquire(residency, "a")
    residency.forget("a")
    residency.prefetch("a")

    residency.release("a")

    assert residency.active_digests == ["a"]


def test_forgetting_an_adapter_on_its_way_leaves_nothing_of_it(build: Build, packages: Packages) -> None:
    packages.rank_of["a"] = 4
    residency = build(copy_units=1)
    packages.may_read.clear()
    residency.prefetch("a")
    residency.forget("a")
    packages.may_read.set()
    settle(residency)
    assert residency.host_bytes_used == 0

    residency.prefetch("a")
    wait_until(lambda: not residency.is_loading("a"), residency)
    assert residency.acquire("a") is None
    residency.copy(is_idle=False)
    residency.forget("a")
    settle(residency)

    assert residency.num_slots_used == residency.arena_bytes_used == residency.host_bytes_used == 0


def test_an_adapter_on_its_way_that_is_named_again_is_no_longer_forgotten(
    build: Build, packages: Packages
) -> None:
    residency = build()
    packages.may_read.clear()
    residency.prefetch("a")
    residency.forget("a")
    residency.prefetch("a")
    packages.may_read.set()

    touch(residency, "a")

    assert residency.active_digests == packages.reads == ["a"]
    assert residency.host_bytes_used == UNIT * 4


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("drop", ["cancel_prefetch", "forget"])
def test_an_adapter_that_nobody_waits_for_any_more_is_not_waited_for(
    build: Build, packages: Packages, is_read: bool, drop: str
) -> None:
    residency = build()
    packages.may_read.clear()
    residency.prefetch("a")
    if is_read:
        packages.may_read.set()
        wait_until(lambda: not residency.is_loading("a"), residency)

    getattr(residency, drop)("a")

    assert residency.num_loading == 0
    packages.may_read.set()
    assert acquire(residency, "a") is not None
