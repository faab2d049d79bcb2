"""Runs against the fake server, in processes of their own. What is asserted are counts and orders, not times."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter

import pytest

from loraplex_loadtest.conditions import judge, parse_condition
from loraplex_loadtest.errors import TargetFeatureError, TargetUnreadyError
from loraplex_loadtest.fake.law import LatencyLaw
from loraplex_loadtest.fake.process import FakeAddresses, fake_server
from loraplex_loadtest.records import CANCELLED_BY_PLAN, OK
from loraplex_loadtest.reports.text import result_text
from loraplex_loadtest.result import result_document
from loraplex_loadtest.run import plan_run, run_scenario
from loraplex_loadtest.running.worker import must_stop
from loraplex_loadtest.targets.target import TargetAddress, TargetKind
from tests.integration.loadtest.conftest import LAW, RunOnFake
from tests.unit.loadtest.builders import scenario


@pytest.mark.parametrize("kind", list(TargetKind), ids=lambda kind: kind.value)
def test_every_protocol_gives_the_same_figures(run_on_fake: RunOnFake, kind: TargetKind) -> None:
    outcome = run_on_fake(kind=kind)

    records = outcome.recording.records
    assert [one.status for one in records] == [OK] * 10
    assert [one.tokens for one in records] == [one.usage_tokens for one in records] == [10] * 10
    assert {one.prompt_tokens for one in records} == {64}
    for one in records:
        # A timer may be late and is never early; the client's clock starts before the server's.
        assert one.first_s - one.sent_s >= LAW.first_token_s - 0.002
        assert one.last_s - one.first_s >= 0
        assert one.sent_s >= one.intended_s - 0.002


def test_the_servers_counters_leave_no_difference(run_on_fake: RunOnFake) -> None:
    outcome = run_on_fake()

    assert outcome.reconciliation is not None
    assert outcome.reconciliation.is_exact
    assert outcome.reconciliation.cut_streams == 0
    assert sum(row.client for row in outcome.reconciliation.rows if row.counter == "completion_tokens") == 100


def test_processes_share_the_plan_and_their_records_are_one(run_on_fake: RunOnFake) -> None:
    outcome = run_on_fake(client={"processes": 2, "connections": 2})

    assert [one.index for one in outcome.recording.records] == list(range(10))
    assert len(outcome.recording.generators) == 2
    assert outcome.recording.tokens.sum() == 100


def test_a_closed_loop_asks_again_when_it_was_answered(run_on_fake: RunOnFake) -> None:
    outcome = run_on_fake(
        {"arrivals": {"kind": "closed", "users": 2, "think_s": 0.05, "requests": 4, "duration_s": 1}}
    )

    records = outcome.recording.records
    assert len(records) > 4  # they began again with what was prepared
    assert len({one.index for one in records}) == len(records)
    ordered = sorted(records, key=lambda one: one.sent_s)
    running = [sum(other.sent_s < one.sent_s < other.ended_s for other in records) for one in ordered]
    assert max(running) <= 1


def test_streams_are_given_up_slowed_and_hurried_as_planned(run_on_fake: RunOnFake) -> None:
    outcome = run_on_fake(
        {
            "arrivals": {"kind": "constant", "rate": 30, "duration_s": 1},
            "answer": {"length": {"kind": "fixed", "tokens": 20}},
        },
        disturbances=[
            {"kind": "cancel", "at_s": 0, "for_s": 0.3, "after_tokens": 3},
            {"kind": "deadline", "at_s": 0.3, "for_s": 0.3, "deadline_s": 0.04},
            {"kind": "slow_reading", "at_s": 0.6, "for_s": 0.2, "pause_s": 0.02},
        ],
    )

    by_kind = {
        name: [one for one in outcome.recording.records if start <= one.intended_s < start + length]
        for name, start, length in (
            ("cut", 0, 0.3),
            ("late", 0.3, 0.3),
            ("slow", 0.6, 0.2),
            ("usual", 0.8, 0.2),
        )
    }
    assert {one.status for one in by_kind["cut"]} == {CANCELLED_BY_PLAN}
    assert {one.tokens for one in by_kind["cut"]} == {3}
    assert {one.status for one in by_kind["late"]} == {"DEADLINE_EXCEEDED"}
    assert {one.status for one in by_kind["slow"] + by_kind["usual"]} == {OK}
    assert min(one.last_s - one.first_s for one in by_kind["slow"]) >= 19 * 0.02 - 0.005
    assert outcome.reconciliation is not None
    assert outcome.reconciliation.is_explained
    assert [one.kind for one in outcome.happened] == ["cancel", "deadline", "slow_reading"]


def test_connections_are_replaced_by_number_and_by_schedule(run_on_fake: RunOnFake) -> None:
    by_number = run_on_fake(client={"reopen_every": 4})
    by_schedule = run_on_fake(disturbances=[{"kind": "reopen_connections", "at_s": 0.26}])

    assert Counter(one.connection for one in by_number.recording.records) == {0: 4, 1: 4, 2: 2}
    assert [one.connection for one in by_schedule.recording.records] == [0] * 5 + [1] * 5
    assert {one.status for one in by_number.recording.records + by_schedule.recording.records} == {OK}


def test_an_open_loop_goes_on_while_the_server_refuses() -> None:
    with fake_server(LatencyLaw(first_token_s=5, max_running=1, max_waiting=1)) as busy:
        made = scenario(
            {
                "arrivals": {"kind": "constant", "rate": 40, "duration_s": 0.5},
                "adapters": {"names": ["base"]},
            },
            window={"drain_s": 0.2},
        )
        outcome = asyncio.run(run_scenario(made, busy.target()))

    statuses = Counter(one.status for one in outcome.recording.records)
    assert statuses == {"RESOURCE_EXHAUSTED": 18, "UNFINISHED": 2}


def test_a_server_that_is_not_there_is_told() -> None:
    nowhere = TargetAddress(TargetKind.OPENAI, "http://127.0.0.1:1")

    with pytest.raises(TargetUnreadyError, match="no server answers"):
        asyncio.run(run_scenario(scenario(), nowhere))


def test_adapters_of_another_server_cannot_be_changed(fake: FakeAddresses) -> None:
    made = scenario(disturbances=[{"kind": "update", "at_s": 0.1}])

    with pytest.raises(TargetFeatureError, match="Loraplex server alone"):
        asyncio.run(run_scenario(made, fake.target(TargetKind.VLLM)))


def test_a_disturbance_that_fails_is_noted_and_the_load_goes_on(run_on_fake: RunOnFake) -> None:
    outcome = run_on_fake(disturbances=[{"kind": "delete", "at_s": 0.1, "name": "fake-00"}])

    (happening,) = outcome.happened
    assert happening.is_failure
    assert {one.status for one in outcome.recording.records} == {OK}


def test_a_dry_run_plans_for_the_servers_adapters(fake: FakeAddresses) -> None:
    made = scenario(
        {
            "arrivals": {"kind": "constant", "rate": 16, "duration_s": 1},
            "adapters": {"mix": {"kind": "round_robin"}},
        }
    )

    plan = asyncio.run(plan_run(made, fake.target()))

    assert [one["adapter"] for one in plan.rows()] == [f"fake-{number:02d}" for number in range(16)]


def test_a_saturated_generator_is_marked(run_on_fake: RunOnFake) -> None:
    """It cannot be asked to do ten thousand requests per second from one process and keep time."""
    outcome = run_on_fake(
        {
            "arrivals": {"kind": "constant", "rate": 10_000, "duration_s": 0.3},
            "answer": {"length": {"kind": "fixed", "tokens": 1}},
        }
    )

    document = result_document(outcome)
    assert not document["is_valid"]
    assert document["generator"]["complaints"]
    assert len(outcome.recording.records) == 3000


def test_five_hundred_streams_are_carried_or_the_run_is_marked(run_on_fake: RunOnFake) -> None:
    """How many messages that makes per second is measured in benchmarks/loadtest.py; here it must be told truly."""
    outcome = run_on_fake(
        {
            "arrivals": {"kind": "constant", "rate": 1000, "duration_s": 0.6},
            "answer": {"length": {"kind": "fixed", "tokens": 60}},
        }
    )

    document = result_document(outcome)
    generator = document["generator"]
    assert len(outcome.recording.records) == 600
    assert sum(one.status == OK for one in outcome.recording.records) == 600
    assert outcome.recording.tokens.sum() == 36_000
    assert document["reconciliation"]["is_exact"]
    assert document["is_valid"] == (generator["send_lag_p99_s"] <= 0.01 and generator["cpu_share"] <= 0.85)


@pytest.mark.parametrize("kind", [TargetKind.LORAPLEX, TargetKind.OPENAI])
def test_retries_are_counted_and_say_how_much_they_add_to_the_load(kind: TargetKind) -> None:
    with fake_server(LatencyLaw(first_token_s=5, max_running=1, max_waiting=1, retry_after_s=1)) as busy:
        made = scenario(
            {
                "arrivals": {"kind": "constant", "rate": 40, "duration_s": 0.2},
                "adapters": {"names": ["base"]},
            },
            client={"retries": True},
            window={"drain_s": 4},
        )
        outcome = asyncio.run(run_scenario(made, busy.target(kind)))

    refused = [one for one in outcome.recording.records if one.status == "RESOURCE_EXHAUSTED"]
    document = result_document(outcome)
    assert [one.attempts for one in refused] == [4] * 6
    assert document["rates"]["attempts"] == 6 * 4 + 2
    assert document["rates"]["attempts_per_request"] == 26 / 8
    assert "retries: 26 attempts, 3.250 for each request" in result_text(document)
    verdict = judge(parse_condition("attempts_per_request>2"), document)
    assert verdict.fails


def test_without_retries_a_refused_request_was_sent_once(run_on_fake: RunOnFake) -> None:
    outcome = run_on_fake()

    assert {one.attempts for one in outcome.recording.records} == {1}
    assert "retries" not in result_text(result_document(outcome))


def test_a_closed_loop_is_drained_like_an_open_one() -> None:
    with fake_server(LatencyLaw(first_token_s=30)) as slow:
        made = scenario(
            {"arrivals": {"kind": "closed", "users": 2, "duration_s": 0.5}, "adapters": {"names": ["base"]}},
            window={"drain_s": 0.5},
        )
        outcome = asyncio.run(run_scenario(made, slow.target()))

    assert [one.status for one in outcome.recording.records] == ["UNFINISHED"] * 2
    assert all(one.ended_s < 20 for one in outcome.recording.records)  # not the answer's thirty seconds


def test_a_generator_whose_parent_is_gone_stops() -> None:
    ours, theirs = multiprocessing.Pipe()
    assert not must_stop(theirs)
    ours.close()

    assert must_stop(theirs)
