"""What operators ask for: adapters that are warmed, and pinned."""

from __future__ import annotations

import pytest

from loraplex_adapters.errors import AdapterTooLargeError
from tests.unit.engine.residency_case import (
    Build,
    Packages,
    acquire,
    make_arena,
    settle,
    step,
    touch,
    wait_until,
)


def test_warming_loads_into_a_slot_without_a_sequence(build: Build) -> None:
    residency = build()

    residency.warm("a")
    settle(residency)

    assert residency.active_digests == ["a"]
    assert residency.num_loading == 0


def test_warming_waits_while_every_slot_is_in_use_and_holds_no_host_memory(
    build: Build, packages: Packages
) -> None:
    residency = build(num_slots=1, host_units=1)
    acquire(residency, "a")
    residency.warm("b")
    settle(residency)
    assert residency.num_loading == 1
    residency.prefetch("c")
    wait_until(lambda: packages.reads == ["a", "b", "c"], residency)
    residency.cancel_prefetch("c")
    settle(residency)
    assert packages.reads == ["a", "b", "c"]  # nothing is read for which there is no slot
    assert residency.tier("b") == "disk"

    residency.release("a")
    settle(residency)

    assert residency.active_digests == ["b"]


def test_what_a_sequence_waits_for_is_read_before_what_is_warmed_or_pinned(
    build: Build, packages: Packages
) -> None:
    residency = build(num_slots=4)
    packages.may_read.clear()
    residency.prefetch("a")
    residency.warm("warmed")
    residency.pin(["pinned"])
    residency.prefetch("b")
    packages.may_read.set()
    wait_until(lambda: len(packages.reads) == 4, residency)

    assert packages.reads[:2] == ["a", "b"]
    assert sorted(packages.reads[2:]) == ["pinned", "warmed"]


def test_a_warmed_adapter_takes_no_slot_of_one_that_a_sequence_waits_for(build: Build) -> None:
    residency = build(num_slots=1)
    touch(residency, "a")
    residency.prefetch("a")

    residency.warm("b")
    settle(residency)

    assert residency.active_digests == ["a"]
    residency.cancel_prefetch("a")
    settle(residency)
    assert residency.active_digests == ["b"]


def test_an_adapter_that_came_before_its_sequence_could_begin_stays_for_it(build: Build) -> None:
    residency = build(num_slots=1)
    residency.prefetch("a")
    wait_until(lambda: not residency.is_loading("a"), residency)
    residency.bring("a")
    wait_until(lambda: residency.tier("a") == "slot", residency)

    residency.warm("b")
    settle(residency)

    assert residency.active_digests == ["a"]


def test_a_warmed_adapter_waits_behind_one_that_a_sequence_waits_for(build: Build) -> None:
    residency = build(num_slots=1)
    acquire(residency, "a")
    residency.warm("warmed")
    settle(residency)
    assert acquire(residency, "b") is None
    residency.release("a")

    residency.advance()

    assert residency.num_slots_used == 1
    assert acquire(residency, "b") is not None
    assert residency.take_events().evictions == 1


def test_what_was_read_for_an_operator_is_not_read_again_for_a_sequence(
    build: Build, packages: Packages
) -> None:
    residency = build(num_slots=1)
    acquire(residency, "a")
    residency.warm("b")
    settle(residency)

    assert acquire(residency, "b") is None
    residency.release("a")
    assert acquire(residency, "b") is not None

    assert packages.reads == ["a", "b"]


def test_pinned_adapters_are_loaded_and_stay_until_they_are_no_longer_pinned(build: Build) -> None:
    residency = build(num_slots=2)
    residency.pin(["a"])
    settle(residency)
    for digest in "bcd":
        touch(residency, digest)
    assert residency.active_digests == ["a", "d"]

    residency.pin([])
    touch(residency, "e")
    touch(residency, "f")

    assert residency.active_digests == ["e", "f"]


def test_an_adapter_that_is_pinned_is_no_longer_forgotten(build: Build) -> None:
    residency = build()
    acquire(residency, "a")
    residency.forget("a")
    residency.pin(["a"])

    residency.release("a")

    assert residency.active_digests == ["a"]


def test_an_adapter_that_is_forgotten_is_no_longer_pinned_when_it_comes_back(build: Build) -> None:
    residency = build(num_slots=1)
    residency.pin(["a"])
    settle(residency)
    residency.forget("a")
    assert not residency.is_pinned("a")
    assert residency.active_digests == []

    touch(residency, "a")
    touch(residency, "b")

    assert residency.active_digests == ["b"]


def test_what_is_no_longer_pinned_before_it_came_does_not_come(build: Build) -> None:
    residency = build(num_slots=1)
    acquire(residency, "a")
    residency.pin(["b"])
    settle(residency)
    assert residency.num_loading == residency.is_pin_waiting == 1

    residency.pin([])

    assert residency.num_loading == residency.is_pin_waiting == 0
    residency.release("a")
    settle(residency)
    assert residency.active_digests == ["a"]


def test_what_pinned_adapters_leave_no_room_for_fails_at_once(build: Build, packages: Packages) -> None:
    residency = build(num_slots=1)
    residency.pin(["a", "b"])
    settle(residency)

    with pytest.raises(AdapterTooLargeError, match="beside the pinned adapters"):
        acquire(residency, "c")

    assert residency.active_digests == ["a"]
    assert [(f.digest, f.reason) for f in residency.take_events().failures] == [("b", "ADAPTER_TOO_LARGE")]
    assert not residency.is_pin_waiting


def test_a_pinned_adapter_that_can_never_come_keeps_nobody_waiting(build: Build, packages: Packages) -> None:
    residency = build(2, make_arena(2))
    packages.rank_of["large"] = 3
    residency.prefetch("large")
    residency.pin(["large"])
    wait_until(lambda: not residency.is_loading("large"), residency)
    step(residency)

    assert not residency.is_pin_waiting
    with pytest.raises(AdapterTooLargeError):
        acquire(residency, "large")


def test_a_pinned_adapter_waits_for_a_slot_in_use_and_says_so(build: Build) -> None:
    residency = build(num_slots=1)
    acquire(residency, "a")
    residency.pin(["b"])
    settle(residency)
    assert residency.is_pin_waiting

    residency.release("a")
    settle(residency)

    assert residency.active_digests == ["b"]
    assert not residency.is_pin_waiting
