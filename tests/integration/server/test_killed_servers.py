"""Whole servers killed under their writers. A hundred such kills: `python -m benchmarks.kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kills import NUM_WRITERS, kill_servers, plan_kills
from benchmarks.kills_stage import new_stage

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


def test_a_plan_of_kills_is_the_same_for_the_same_seed() -> None:
    assert plan_kills(100, 1) == plan_kills(100, 1) != plan_kills(100, 2)
