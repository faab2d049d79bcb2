"""Whole servers killed under their writers. A hundred such kills: `python -m benchmarks.kills`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.kills import NUM_WRITERS, kill_servers, plan_kills
from benchmarks.kills_stage import new_stage
from benchmarks.kills_writes import CHANGES, draw
from tests.support.release_model import ModelRegistry

pytestmark = [pytest.mark.slow, pytest.mark.waits, pytest.mark.timeout(600)]

SEED = 216  # its second server is killed while it starts, the third with all its processes at once


def test_acknowledged_changes_survive_kills_of_whole_servers_and_nothing_of_them_is_left(
    tiny_base: Path,
) -> None:
    kills = plan_kills(3, SEED)
    assert [(kill.is_while_starting, kill.everything) for kill in kills] == [
        (False, False),
        (True, True),
        (False, True),
    ]

    with new_stage(tiny_base) as stage:
        outcome = kill_servers(stage, kills, SEED)

    assert outcome.failure == ""
    assert outcome.done == kills
    assert outcome.num_acknowledged >= kills[0].num_acknowledged + kills[2].num_acknowledged > NUM_WRITERS


def test_every_kind_of_change_is_written_and_aimed_at() -> None:
    choice, model = random.Random(SEED), ModelRegistry()
    kinds = set()
    for _ in range(1000):
        write = draw(choice, "t0", model, num_packages=5)
        write.apply(model)
        kinds.add(write.kind)

    assert kinds >= set(CHANGES) == {kill.aim for kill in plan_kills(100, SEED)} - {""}


def test_a_kind_that_is_wanted_is_drawn_where_it_can_take_effect() -> None:
    choice, model = random.Random(SEED), ModelRegistry()

    assert draw(choice, "t0", model, num_packages=5, wanted="labels").kind != "labels"

    model.register("t0/one", 0, "refuse", "")
    assert draw(choice, "t0", model, num_packages=5, wanted="labels").kind == "labels"
    assert draw(choice, "t0", model, num_packages=5, wanted="pin").kind == "pin"
    assert draw(choice, "t1", model, num_packages=5, wanted="pin").kind != "pin"  # slots would run short


def test_a_plan_of_kills_is_the_same_for_the_same_seed() -> None:
    assert plan_kills(100, 1) == plan_kills(100, 1) != plan_kills(100, 2)
