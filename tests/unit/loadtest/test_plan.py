"""Scenarios are strict, and a plan is a pure function of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_loadtest.disturbances.schedule import Behaviour, behaviour_at, occurrences
from loraplex_loadtest.errors import ScenarioInvalidError
from loraplex_loadtest.scenario import (
    Scenario,
    find_scenario,
    make_scenario,
    of_duration,
    read_scenario,
    ready_scenarios,
)
from loraplex_loadtest.workload.arrivals import duration_of
from loraplex_loadtest.workload.plan import Plan, adapters_of, make_plan
from tests.unit.loadtest.builders import scenario

READY = [
    "cold-storm",
    "int8-vs-nf4",
    "noisy-neighbour",
    "rolling-update",
    "saturation",
    "smoke",
    "soak",
    "steady-zipf",
    "train-while-serving",
]
NAMES = ["red", "green", "shop/blue"]


def plan(made: Scenario) -> Plan:
    return make_plan(made, {one.name: adapters_of(one, NAMES, NAMES) for one in made.traffic})


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ([], "speed"),
        (["traffic", 0], "rate"),
        (["traffic", 0, "arrivals"], "jitter"),
        (["traffic", 0, "adapters"], "alpha"),
        (["client"], "threads"),
        (["objectives"], "ttft_p99"),
    ],
    ids=str,
)
def test_an_unknown_key_is_an_error_that_names_it(place: list[Any], key: str) -> None:
    document: dict[str, Any] = {
        "name": "x",
        "traffic": [{"arrivals": {"kind": "constant", "rate": 1}, "adapters": {}}],
        "client": {},
        "objectives": {},
    }
    section: Any = document
    for step in place:
        section = section[step]
    section[key] = 1

    with pytest.raises(ScenarioInvalidError, match=rf"{key}.*not permitted"):
        make_scenario(document)


def test_two_sources_of_one_name_are_refused() -> None:
    arrivals = {"arrivals": {"kind": "constant", "rate": 1}}

    with pytest.raises(ScenarioInvalidError, match="same name"):
        make_scenario({"name": "x", "traffic": [arrivals, arrivals]})


def test_the_ready_scenarios_are_these() -> None:
    assert sorted(ready_scenarios()) == READY


@pytest.mark.parametrize("name", READY)
def test_a_ready_scenario_is_called_as_its_file_and_makes_a_plan(name: str) -> None:
    made = read_scenario(find_scenario(name))

    assert made.name == name
    assert made.description
    assert len(plan(of_duration(made, 20)).requests) > 5


def test_an_unknown_scenario_names_those_that_there_are() -> None:
    with pytest.raises(ScenarioInvalidError, match="steady-zipf"):
        find_scenario("steady")


def test_keys_can_be_replaced_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\ntokenizer: base\ntraffic:\n  - arrivals: {kind: constant, rate: 1}\n")

    made = read_scenario(file, {"traffic.0.arrivals.rate": 5, "client.processes": 2})

    assert made.tokenizer == tmp_path / "base"
    assert made.traffic[0].arrivals.model_dump()["rate"] == 5
    assert made.client.processes == 2
    with pytest.raises(ScenarioInvalidError, match="no entry 3"):
        read_scenario(file, {"traffic.3.arrivals.rate": 5})


@pytest.mark.parametrize("text", ["- a\n", "a: [\n"])
def test_what_is_no_scenario_says_so(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)

    with pytest.raises(ScenarioInvalidError, match=r"mine\.yaml"):
        read_scenario(file)


def test_a_scenario_is_stretched_with_all_its_moments() -> None:
    made = of_duration(read_scenario(find_scenario("rolling-update")), 6)

    assert duration_of(made.traffic[0].arrivals) == 6
    assert [what.at_s for what in made.disturbances] == pytest.approx([1, 2, 3.5, 4, 5])
    assert made.traffic[0].arrivals.model_dump()["rate"] == 2


@given(st.integers(0, 2**31))
def test_a_plan_depends_on_the_seed_alone(seed: int) -> None:
    traffic = {"arrivals": {"kind": "poisson", "rate": 5, "duration_s": 5}}

    assert plan(scenario(traffic, seed=seed)) == plan(scenario(traffic, seed=seed))


def test_another_mix_leaves_the_moments_as_they_are() -> None:
    arrivals = {"kind": "poisson", "rate": 5, "duration_s": 20}
    uniform, zipf = (
        plan(scenario({"arrivals": arrivals, "adapters": {"mix": {"kind": kind}}}))
        for kind in ("uniform", "zipf")
    )

    assert [one.at_s for one in uniform.requests] == [one.at_s for one in zipf.requests]
    assert [one.adapter for one in uniform.requests] != [one.adapter for one in zipf.requests]


def test_requests_of_all_sources_are_in_order_of_their_moments() -> None:
    made = plan(
        scenario(
            {"name": "a", "arrivals": {"kind": "poisson", "rate": 5, "duration_s": 5}},
            {"name": "b", "arrivals": {"kind": "gamma", "rate": 5, "cv": 3, "duration_s": 8}},
        )
    )

    assert [one.index for one in made.requests] == list(range(len(made.requests)))
    assert [one.at_s for one in made.requests] == sorted(one.at_s for one in made.requests)
    assert made.duration_s == 8


def test_a_tenant_is_the_adapters_unless_weights_are_given() -> None:
    usual = plan(
        scenario({"arrivals": {"kind": "constant", "rate": 9}, "adapters": {"mix": {"kind": "round_robin"}}})
    )
    matrix = plan(
        scenario(
            {
                "arrivals": {"kind": "constant", "rate": 9},
                "tenants": {"a": 1, "b": 1},
                "adapters": {"names": ["{tenant}/faq", "base"]},
            }
        )
    )

    assert {one.tenant for one in usual.requests} == {"default", "shop"}
    assert {(one.tenant, one.adapter) for one in matrix.requests} == {
        ("a", "a/faq"),
        ("b", "b/faq"),
        ("a", ""),
        ("b", ""),
    }


def test_users_share_the_requests_of_a_closed_loop() -> None:
    made = plan(scenario({"arrivals": {"kind": "closed", "users": 3, "requests": 9, "duration_s": 5}}))

    assert [one.user for one in made.requests] == [0, 1, 2] * 3
    assert made.scenario.is_closed


def test_a_trace_brings_its_own_lengths_and_adapters(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("timestamp,input_len,output_len,adapter\n0,30,5,red\n1,,,base\n")

    first, second = plan(scenario({"arrivals": {"kind": "trace", "file": file}})).requests

    assert (first.prompt_tokens, first.max_tokens, first.adapter) == (30, 5, "red")
    assert (second.prompt_tokens, second.max_tokens, second.adapter) == (64, 32, "")


def test_a_window_leaves_out_what_is_before_and_behind_it() -> None:
    made = plan(scenario(window={"warm_up_s": 2, "cool_down_s": 3}))

    assert made.window_s == (2, 7)


def test_a_disturbance_concerns_its_share_while_it_lasts() -> None:
    made = plan(
        scenario(
            {"arrivals": {"kind": "constant", "rate": 200, "duration_s": 10}},
            disturbances=[
                {"kind": "cancel", "at_s": 2, "for_s": 4, "share": 0.5, "after_tokens": 3},
                {"kind": "deadline", "at_s": 8, "for_s": 1, "deadline_s": 0.5},
            ],
        )
    )

    cancelled = [one.at_s for one in made.requests if one.behaviour.cancel_after_tokens == 3]
    hurried = [one.at_s for one in made.requests if one.behaviour.deadline_s == 0.5]
    assert len(cancelled) == pytest.approx(400, rel=0.15)
    assert [min(cancelled), max(cancelled)] == pytest.approx([2, 6], abs=0.1)
    assert len(hurried) == 200


def test_a_disturbance_comes_again_as_often_as_it_is_told_to() -> None:
    made = scenario(
        disturbances=[
            {"kind": "slow_reading", "at_s": 1, "every_s": 3, "times": 2, "for_s": 1, "pause_s": 0.2}
        ]
    )
    usual = Behaviour(deadline_s=9)

    assert [one.at_s for one in occurrences(made.disturbances)] == [1, 4]
    pauses = [
        behaviour_at(usual, made.disturbances, at_s, (0, 0, 0)).read_pause_s
        for at_s in (0.5, 1.5, 2.5, 4.5, 7.5)
    ]
    assert pauses == [0, 0.2, 0, 0.2, 0]


def test_traffic_without_adapters_says_what_to_do() -> None:
    made = scenario({"arrivals": {"kind": "constant", "rate": 1}, "adapters": {"names": "registered"}})

    with pytest.raises(ScenarioInvalidError, match="register some"):
        adapters_of(made.traffic[0], [], [])


def test_the_last_request_of_a_trace_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("timestamp\n0\n4\n8\n")
    made = plan(scenario({"arrivals": {"kind": "trace", "file": file}, "adapters": {"names": ["red"]}}))

    start_s, end_s = made.window_s
    assert [start_s <= one.at_s < end_s for one in made.requests] == [True] * 3


def test_a_hot_set_cannot_shift_where_no_request_has_a_moment() -> None:
    hot = {"names": ["red", "green"], "mix": {"kind": "hot_set", "shift_at_s": [5]}}

    with pytest.raises(ScenarioInvalidError, match="cannot shift"):
        scenario({"arrivals": {"kind": "closed", "users": 1}, "adapters": hot})


def test_a_key_below_a_plain_value_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(ScenarioInvalidError, match=r"name\.x\.y"):
        read_scenario(find_scenario("smoke"), {"name.x.y": 1})


def test_a_scenario_in_another_encoding_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes("name: é".encode("latin-1"))

    with pytest.raises(ScenarioInvalidError, match="UTF-8"):
        read_scenario(tmp_path / "s.yaml")
