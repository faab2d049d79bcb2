"""Whom eviction may take, and how room is made."""

from __future__ import annotations

import pytest
import torch

from loraplex_server.engine import adapter_residency
from tests.unit.engine.residency_case import UNIT, Build, Packages, acquire, make_arena, touch, wait_until


def test_an_adapter_in_use_is_never_evicted(build: Build) -> None:
    residency = build(num_slots=2)
    acquire(residency, "a")
    touch(residency, "b")

    assert acquire(residency, "c") is not None
    assert acquire(residency, "d") is None
    assert residency.active_digests == ["a", "c"]
    residency.release("c")
    assert acquire(residency, "d") is not None
    assert residency.active_digests == ["a", "d"]


def test_two_leases_hold_an_adapter_until_both_are_back(build: Build) -> None:
    residency = build(num_slots=1)
    acquire(residency, "a")
    acquire(residency, "a")
    residency.release("a")

    assert acquire(residency, "b") is None
    residency.release("a")
    assert acquire(residency, "b") is not None


def test_as_many_idle_adapters_go_as_the_new_one_needs_room(build: Build, packages: Packages) -> None:
    residency = build(8, make_arena(4))
    packages.rank_of["large"] = 3
    for digest in "abcd":
        touch(residency, digest)

    touch(residency, "large")

    assert residency.active_digests == ["d", "large"]
    assert residency.take_events().evictions == 3


def test_room_that_an_adapter_in_use_cuts_in_pieces_is_moved_together(
    build: Build, packages: Packages
) -> None:
    arena = make_arena(4)
    residency = build(8, arena)
    packages.rank_of["large"] = 3
    for digest in "abcd":
        touch(residency, digest)
    slot = acquire(residency, "b")
    assert slot is not None

    assert acquire(residency, "large") is not None

    assert residency.active_digests == ["b", "large"]
    assert torch.all(arena.layers_of_slot(slot)[0]["qkv"].a == ord("b"))
    assert residency.take_events().compacted_bytes == UNIT * 4


def test_no_more_is_moved_in_a_step_than_steps_can_bear(
    build: Build, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_residency, "_MAX_MOVED_BYTES", UNIT * 4)
    residency = build(8, make_arena(5))
    packages.rank_of["large"] = 3
    for digest in "abcde":
        touch(residency, digest)
    for digest in "bd":
        acquire(residency, digest)
    residency.take_events()
    residency.prefetch("large")
    wait_until(lambda: not residency.is_loading("large"), residency)

    moved = []
    for is_idle in (False, True, True):
        residency.advance()
        assert residency.acquire("large") is None
        residency.copy(is_idle=is_idle)
        moved.append(residency.take_events().compacted_bytes)
        assert residency.is_busy, "an idle engine would sleep"

    assert moved == [UNIT * 4, UNIT * 4, 0]
    assert acquire(residency, "large") is not None
