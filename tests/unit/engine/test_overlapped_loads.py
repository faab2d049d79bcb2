"""Adapters are copied while they are still being read; nothing of an attempt that went wrong is ever served."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from loraplex_adapters.errors import AdapterUnavailableError
from tests.unit.engine.load_world import UNIT, UNIT_BYTES, LoadWorld


@pytest.fixture
def build() -> Iterator[Callable[..., LoadWorld]]:
    built: list[LoadWorld] = []

    def build(**sizes: int) -> LoadWorld:
        built.append(LoadWorld(**sizes))
        return built[-1]

    yield build
    for world in built:
        for digest in list(world.disk.reading):
            world.disk.fail(digest)
        world.residency.close()


Build = Callable[..., LoadWorld]


def test_what_was_checked_is_copied_while_the_rest_is_being_read(build: Build) -> None:
    world = build()
    world.begin("a", 4)
    world.disk.fill("a", 1, 1.0)
    world.step()
    assert world.memory.num_ahead == UNIT

    world.disk.fill("a", 3, 1.0)
    world.memory.land()
    world.step()
    assert world.memory.num_ahead == 2 * UNIT
    world.disk.fill("a", 4, 1.0)
    world.disk.end("a")

    assert torch.all(world.serve("a") == 1.0)


def test_what_is_copied_beside_the_reading_takes_no_time_of_its_own(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build()
    world.begin("a", 2)
    world.disk.fill("a", 1, 1.0)
    world.step()
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 1000.0)  # the disk is slow
    world.disk.fill("a", 2, 1.0)
    world.disk.end("a")
    world.serve("a")

    [seconds] = world.residency.take_events().copy_seconds

    assert seconds < 1000.0


def test_an_adapter_is_not_served_before_its_reader_says_that_all_is_well(build: Build) -> None:
    world = build()
    world.begin("a", 2)
    world.disk.fill("a", 2, 1.0)
    for _ in range(5):
        assert not world.step()
        world.memory.land()
    assert world.residency.is_loading("a")

    world.disk.end("a")

    assert torch.all(world.serve("a") == 1.0)


@pytest.mark.parametrize("second_rank", [2, 4, 5])
def test_what_was_copied_before_damage_was_found_is_never_served(build: Build, second_rank: int) -> None:
    world = build()
    world.begin("a", 4)
    world.disk.fill("a", 4, math.nan)
    world.step()
    world.memory.land(1)
    world.disk.damage("a")
    world.disk.begin("a", second_rank)
    world.disk.fill("a", 1, 2.0)
    world.step()
    world.disk.fill("a", second_rank, 2.0)
    world.disk.end("a")

    weights = world.serve("a")

    assert weights.numel() == second_rank * UNIT
    assert torch.all(weights == 2.0)


def test_slot_and_extent_of_a_damaged_image_come_free_once_nothing_lands_there_any_more(build: Build) -> None:
    world = build(num_slots=1)
    world.begin("a", 4)
    world.disk.fill("a", 3, math.nan)
    world.step()
    world.disk.damage("a")

    for _ in range(3):
        world.step()
    assert world.bytes_used == (4 * UNIT_BYTES, 0)
    assert world.residency.num_slots_used == 1
    world.residency.take_events()
    world.memory.land()
    world.step()

    assert world.bytes_used == (0, 0)
    assert world.residency.num_slots_used == 0
    assert world.residency.has_news  # else nobody would be told that the slot is free
    world.residency.take_events()
    assert not world.residency.has_news
    world.load("b")  # while the package of the first one is being read
    assert world.residency.active_digests == ["b"]


def test_damage_that_nothing_mends_fails_the_request_and_leaves_nothing(build: Build) -> None:
    world = build()
    world.begin("a", 4)
    world.disk.fill("a", 3, math.nan)
    world.step()
    world.disk.fail("a")

    with pytest.raises(AdapterUnavailableError, match="cut off"):
        world.step_until(lambda: False)

    world.waiting.remove("a")
    world.memory.land()
    world.step()
    assert world.bytes_used == (0, 0)
    assert world.residency.num_slots_used == world.residency.num_loading == 0
    assert not world.residency.is_busy
    world.load("a")


def test_a_pinned_adapter_is_not_too_large_beside_its_own_copy_that_was_given_up(build: Build) -> None:
    world = build()
    world.residency.pin(["a"])
    world.begin("a", 5)
    world.disk.fill("a", 5, math.nan)
    world.step()
    world.disk.damage("a")
    world.disk.begin("a", 5)
    world.disk.fill("a", 5, 2.0)
    world.disk.end("a")
    world.step_until(lambda: world.residency.tier("a") == "host")
    for _ in range(3):
        assert not world.step()

    assert torch.all(world.serve("a") == 2.0)


def test_a_request_that_is_aborted_while_its_adapter_is_half_copied_leaves_an_idle_adapter(
    build: Build,
) -> None:
    world = build(num_slots=1)
    world.begin("a", 4)
    world.disk.fill("a", 2, 1.0)
    world.step()

    world.leave_queue("a")
    world.disk.fill("a", 4, 1.0)
    world.disk.end("a")
    world.step_until(lambda: world.memory.num_ahead == 4 * UNIT)
    world.memory.land()
    world.step_until(lambda: not world.residency.is_busy)

    assert world.residency.active_digests == ["a"]
    world.load("b")
    assert world.residency.active_digests == ["b"]


def test_forgetting_a_half_copied_adapter_leaves_nothing_of_it(build: Build) -> None:
    world = build()
    world.begin("a", 4)
    world.disk.fill("a", 2, 1.0)
    world.step()

    world.leave_queue("a")
    world.residency.forget("a")
    world.disk.end("a")
    world.step_until(lambda: world.memory.num_ahead == 4 * UNIT)
    world.memory.land()
    world.step_until(lambda: not world.residency.is_busy)

    assert world.bytes_used == (0, 0)


def test_a_pinned_adapter_that_is_forgotten_while_it_is_copied_makes_no_other_too_large(build: Build) -> None:
    world = build(num_slots=1)
    world.residency.pin(["a"])
    world.begin("a", 4)
    world.disk.fill("a", 2, 1.0)
    world.step()
    world.leave_queue("a")
    world.residency.forget("a")

    world.begin("b", 1)
    world.disk.fill("b", 1, 2.0)
    world.disk.end("b")
    world.step_until(lambda: world.residency.tier("b") == "host")
    for _ in range(3):
        assert not world.step()  # it waits, and is not refused
    world.disk.fill("a", 4, 1.0)
    world.disk.end("a")

    assert torch.all(world.serve("b") == 2.0)


def test_a_half_copied_adapter_is_not_evicted_for_another(build: Build) -> None:
    world = build(num_slots=1)
    world.begin("a", 4)
    world.disk.fill("a", 2, 1.0)
    world.step()
    world.begin("b", 1)
    world.disk.fill("b", 1, 2.0)
    world.disk.end("b")
    world.step_until(lambda: world.residency.tier("b") == "host")
    for _ in range(5):
        assert not world.step()
        world.memory.land()
    world.disk.fill("a", 4, 1.0)
    world.disk.end("a")

    assert torch.all(world.serve("a") == 1.0)
    world.residency.release("a")
    assert torch.all(world.serve("b") == 2.0)


def test_an_adapter_that_is_being_read_takes_no_slot_of_one_that_is_waited_for(build: Build) -> None:
    world = build(num_slots=1)
    world.load("a")
    world.begin("b", 2)
    world.residency.prefetch("a")
    world.disk.fill("b", 1, 2.0)
    for _ in range(3):
        assert not world.step()
    assert world.residency.active_digests == ["a"]

    world.disk.fill("b", 2, 2.0)
    world.disk.end("b")

    assert torch.all(world.serve("b") == 2.0)


def test_two_adapters_load_at_once(build: Build) -> None:
    world = build()
    world.begin("a", 4)
    world.begin("b", 3)
    world.request("c")
    world.disk.fill("a", 2, 1.0)
    world.disk.fill("b", 1, 2.0)
    world.step()
    assert world.memory.num_ahead == 3 * UNIT
    assert world.disk.reading == ["a", "b"]

    world.disk.fill("b", 3, 2.0)
    world.disk.end("b")
    assert torch.all(world.serve("b") == 2.0)
    world.disk.fill("a", 4, 1.0)
    world.disk.end("a")

    assert torch.all(world.serve("a") == 1.0)


def test_requests_for_adapters_that_load_at_once_read_each_of_them_once(build: Build) -> None:
    world = build()
    for _ in range(3):
        world.request("a")
        world.request("b")
    for digest in "ab":
        world.step_until(lambda digest=digest: digest in world.disk.reading)  # type: ignore[misc]
        world.disk.begin(digest, 1)

    for digest in "ab":
        world.disk.fill(digest, 1, float(ord(digest)))
        world.disk.end(digest)  # a second read would wait for the test

    while world.waiting:
        world.step()
        world.memory.land()
    assert world.residency.num_leases == 6


def test_two_reads_at_once_take_no_more_host_memory_than_the_cache_has(build: Build) -> None:
    world = build(host_units=4)
    world.load("z", 4)
    world.request("a")  # of unknown size, so taken to be as large as the last one
    world.request("b")
    for _ in range(5):
        world.step()
        time.sleep(0.001)
    assert world.disk.reading == ["a"]

    world.disk.begin("a", 1)
    world.step_until(lambda: world.disk.reading == ["a", "b"])
    world.disk.begin("b", 3)

    assert world.residency.host_bytes_used == 4 * UNIT_BYTES


def test_no_more_is_queued_ahead_than_is_allowed_however_many_steps_there_are(build: Build) -> None:
    world = build(copy_units=2)
    for digest in "ab":
        world.begin(digest, 3)
        world.disk.fill(digest, 3, float(ord(digest)))
    for _ in range(5):
        world.step()
    assert world.memory.num_ahead == 2 * UNIT

    world.memory.land(1)
    world.step()
    assert world.memory.num_ahead == 2 * UNIT
    for digest in "ab":
        world.disk.end(digest)
        assert torch.all(world.serve(digest) == ord(digest))


def test_an_idle_engine_queues_all_and_the_next_step_only_what_the_bound_leaves(build: Build) -> None:
    world = build(copy_units=2)
    world.begin("a", 3)
    world.disk.fill("a", 3, 1.0)
    world.begin("b", 3)
    world.residency.advance()
    for digest in "ba":
        world.residency.acquire(digest)
    world.residency.copy(is_idle=True)
    assert world.memory.num_ahead == 3 * UNIT

    world.disk.fill("b", 3, 2.0)
    world.step()
    assert world.memory.num_ahead == 3 * UNIT
    world.memory.land()
    world.step()
    assert world.memory.num_ahead == 2 * UNIT
    for digest, value in (("a", 1.0), ("b", 2.0)):
        world.disk.end(digest)
        assert torch.all(world.serve(digest) == value)
