"""Every ready scenario, short, against a real server; what arrived is what the server counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from loraplex_cli.demo.server_process import running_server as demo_server
from loraplex_client import LoraplexClient
from loraplex_loadtest.records import OK
from loraplex_loadtest.run import Outcome, run_scenario
from loraplex_loadtest.scenario import find_scenario, of_duration, read_scenario
from loraplex_loadtest.targets.target import TargetAddress, TargetKind
from tests.integration.conftest import StartServer
from tests.integration.live_server import LiveServer
from tests.unit.loadtest.builders import scenario

ROOT = Path(__file__).parents[3]
SECONDS = 2.0
QUIET = (
    "smoke",
    "steady-zipf",
    "cold-storm",
    "rolling-update",
    "noisy-neighbour",
    "saturation",
    "int8-vs-nf4",
)


def address(server: LiveServer) -> TargetAddress:
    return TargetAddress(TargetKind.LORAPLEX, server.target, server.metrics_url)


def run(name: str, server: LiveServer, base: Path, packages: Path, **changes: Any) -> Outcome:
    values = {"tokenizer": str(base), "setup.package": str(packages / "red"), **changes}
    read = read_scenario(find_scenario(name), values)
    if read.setup.variants:
        values["setup.variants"] = 2
        read = read_scenario(find_scenario(name), values)
    return asyncio.run(run_scenario(of_duration(read, SECONDS), address(server)))


def assert_exact(outcome: Outcome) -> None:
    records = outcome.recording.records
    assert records
    assert {one.status for one in records} == {OK}
    assert all(one.tokens == one.usage_tokens == one.max_tokens for one in records)
    assert outcome.reconciliation is not None
    assert outcome.reconciliation.is_exact, outcome.reconciliation.as_json()
    assert not [one for one in outcome.happened if one.is_failure]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "smoke" else pytest.mark.slow) for name in QUIET]
)
def test_a_ready_scenario_runs_and_every_token_is_accounted_for(
    name: str, server: LiveServer, tiny_base: Path, packages: Path
) -> None:
    outcome = run(name, server, tiny_base, packages)

    assert_exact(outcome)
    asked = {one.index: one.prompt_tokens for one in outcome.plan.requests}
    if not outcome.plan.scenario.is_closed:
        assert all(one.prompt_tokens == asked[one.index] for one in outcome.recording.records)


@pytest.mark.slow
def test_a_soak_of_everything_leaves_nothing_unexplained(
    server: LiveServer, tiny_base: Path, packages: Path
) -> None:
    outcome = run("soak", server, tiny_base, packages, **{"traffic.0.arrivals.rate": 15})

    assert outcome.reconciliation is not None
    assert outcome.reconciliation.is_explained, outcome.reconciliation.as_json()
    assert {one.status for one in outcome.recording.records} <= {OK, "CANCELLED_BY_PLAN", "DEADLINE_EXCEEDED"}
    assert not [one for one in outcome.happened if one.is_failure]


def test_what_a_run_registers_is_gone_after_it(server: LiveServer, tiny_base: Path, packages: Path) -> None:
    run("cold-storm", server, tiny_base, packages)

    with server.client() as client:
        assert {adapter.name for adapter in client.adapters.list()} == {"red", "green", "blue"}


@pytest.mark.slow
def test_an_engine_that_is_killed_costs_what_was_running_and_no_more(
    own_server: StartServer, tiny_base: Path
) -> None:
    server = own_server()
    made = scenario(
        {
            "arrivals": {"kind": "constant", "rate": 4, "duration_s": 12},
            "adapters": {"names": ["red", "base"], "mix": {"kind": "round_robin"}},
            "answer": {"length": {"kind": "fixed", "tokens": 200}},
        },
        disturbances=[{"kind": "kill_engine", "at_s": 2}],
    )

    outcome = asyncio.run(run_scenario(made, address(server)))

    (killed,) = outcome.happened
    assert not killed.is_failure
    failed = [one for one in outcome.recording.records if one.status != OK]
    assert {one.status for one in failed} <= {"UNAVAILABLE"}
    assert {one.reason for one in failed} <= {"ENGINE_RESTARTED", "ENGINE_UNAVAILABLE"}
    assert failed
    assert outcome.recording.records[0].status == OK
    assert outcome.recording.records[-1].status == OK


@pytest.mark.slow
def test_smollm2_answers_and_every_token_is_accounted_for() -> None:
    arguments = ["--device", "cpu", "--num-threads", "1", "--quantization", "fp32"]
    with demo_server(arguments) as serving:
        with LoraplexClient(serving.target, timeout_s=240) as client:
            client.adapters.upload("finance", ROOT / "adapters/finance/package")
        target = TargetAddress(TargetKind.LORAPLEX, serving.target, serving.metrics_url)
        made = read_scenario(find_scenario("smoke"), {"traffic.0.arrivals.rate": 1})
        outcome = asyncio.run(run_scenario(of_duration(made, 4), target))

    assert_exact(outcome)
