"""How an adapter comes from disk over the host into a slot, and what messages tell of it."""

from __future__ import annotations

import time

import torch

from tests.unit.engine.residency_case import (
    UNIT,
    Build,
    Packages,
    acquire,
    make_arena,
    step,
    touch,
    wait_until,
)


def test_an_adapter_is_not_there_before_it_was_read(build: Build, packages: Packages) -> None:
    residency = build()
    packages.may_read.clear()

    assert residency.acquire("a") is None
    assert residency.is_loading("a")
    packages.may_read.set()

    assert acquire(residency, "a") is not None
    assert not residency.is_loading("a")


def test_first_requests_for_an_adapter_at_once_read_it_once(build: Build, packages: Packages) -> None:
    residency = build()
    packages.may_read.clear()
    for _ in range(5):
        residency.prefetch("a")
        assert residency.acquire("a") is None
    packages.may_read.set()

    slots = {acquire(residency, "a") for _ in range(5)}

    assert len(slots) == 1
    assert packages.reads == ["a"]
    assert residency.num_leases == 5


def test_a_copy_takes_no_more_of_a_step_than_it_may(build: Build, packages: Packages) -> None:
    packages.rank_of = {"a": 5}
    residency = build(copy_units=2)
    residency.prefetch("a")
    wait_until(lambda: not residency.is_loading("a"), residency)

    for _ in range(3):
        assert residency.acquire("a") is None
        residency.advance()
        assert residency.acquire("a") is None
        residency.copy(is_idle=False)
    residency.advance()

    assert residency.acquire("a") is not None


def test_copies_go_on_however_little_a_step_may_take(build: Build) -> None:
    touch(build(copy_units=0), "a")


def test_an_idle_engine_copies_all_at_once(build: Build, packages: Packages) -> None:
    """LoRAX #395: one request after another waited long for its adapter, until a burst of them came."""
    packages.rank_of = {"a": 5}
    residency = build(copy_units=1)
    residency.prefetch("a")
    wait_until(lambda: not residency.is_loading("a"), residency)

    assert residency.acquire("a") is None
    residency.copy(is_idle=True)
    residency.advance()

    assert residency.acquire("a") is not None


def test_a_slot_holds_the_weights_of_its_adapter(build: Build, packages: Packages) -> None:
    arena = make_arena()
    residency = build(3, arena)
    packages.rank_of = {"a": 2, "b": 1, "c": 3}
    slots = {digest: acquire(residency, digest) for digest in "abc"}

    assert len(set(slots.values())) == 3
    for digest, slot in slots.items():
        assert slot is not None
        projection = arena.layers_of_slot(slot)[0]["qkv"]
        assert projection.a.shape == (4, packages.rank_of[digest])
        assert torch.all(projection.a == ord(digest))
        assert torch.all(projection.parts[0].b == ord(digest))


def test_the_least_recently_used_adapter_is_evicted_and_comes_back_from_the_host(
    build: Build, packages: Packages
) -> None:
    residency = build(num_slots=2)
    for digest in "aba":
        touch(residency, digest)

    touch(residency, "c")
    assert residency.active_digests == ["a", "c"]
    assert residency.tier("b") == "host"
    touch(residency, "b")

    assert packages.reads == ["a", "b", "c"]


def test_an_adapter_that_is_on_the_host_waits_for_nobody_s_read(build: Build, packages: Packages) -> None:
    residency = build(num_slots=1)
    touch(residency, "a")
    touch(residency, "b")
    packages.may_read.clear()
    residency.prefetch("slow")

    touch(residency, "a")

    assert residency.is_loading("slow")


def test_an_adapter_that_left_the_host_too_is_read_again(build: Build, packages: Packages) -> None:
    residency = build(num_slots=1, host_units=2)
    for digest in "abca":
        touch(residency, digest)

    assert packages.reads == ["a", "b", "c", "a"]


def test_an_adapter_larger_than_the_host_cache_is_served(build: Build, packages: Packages) -> None:
    packages.rank_of["large"] = 6
    residency = build(host_units=2)

    touch(residency, "large")
    touch(residency, "a")

    assert residency.host_bytes_used == UNIT * 4
    assert residency.active_digests == ["large", "a"]


def test_no_more_is_read_ahead_than_the_host_cache_holds(build: Build, packages: Packages) -> None:
    residency = build(num_slots=1, host_units=3)
    acquire(residency, "z")
    for digest in "abcdefgh":
        residency.prefetch(digest)

    for _ in range(200):
        step(residency)
        time.sleep(0.0005)

    assert packages.reads == ["z", "a", "b", "c"]
    assert residency.host_bytes_used == 3 * UNIT * 4
    residency.release("z")
    for digest in "abcdefgh":
        touch(residency, digest)
    assert packages.reads == list("zabcdefgh")


def test_events_tell_each_read_copy_eviction_and_move_once(build: Build) -> None:
    residency = build(num_slots=1)
    for digest in "aab":
        touch(residency, digest)

    events = residency.take_events()

    assert len(events.read_seconds) == len(events.copy_seconds) == 2
    assert events.evictions == 1
    assert {move.digest: move.tier for move in events.moves} == {"a": "host", "b": "slot"}
    assert all(move.read_seconds > 0 and move.copy_seconds > 0 for move in events.moves)
    assert residency.take_events().moves == []
    residency.forget("b")
    assert residency.has_news
    assert [move.tier for move in residency.take_events().moves] == ["disk"]


def test_an_adapter_that_leaves_the_host_cache_is_told_to_be_on_disk(build: Build) -> None:
    residency = build(num_slots=1, host_units=1)
    touch(residency, "a")
    residency.take_events()

    touch(residency, "b")

    moves = {move.digest: move.tier for move in residency.take_events().moves}
    assert moves == {"a": "disk", "b": "slot"}
