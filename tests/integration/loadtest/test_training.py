"""Training jobs under load: the real trainer once, a scripted one for every end that a job may come to."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from loraplex_client import TrainingJob, TrainingJobState
from loraplex_loadtest.errors import ScenarioInvalidError, TargetFeatureError
from loraplex_loadtest.run import Outcome, run_scenario
from loraplex_loadtest.scenario import find_scenario, of_duration, read_scenario
from loraplex_loadtest.targets.target import TargetAddress, TargetKind
from tests.integration.conftest import register_all
from tests.integration.live_server import LiveServer, running_server
from tests.integration.loadtest.conftest import RunOnFake
from tests.support.scripted_trainer import install
from tests.unit.loadtest.builders import scenario


@pytest.fixture(scope="module")
def scripted(
    tiny_base: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server whose trainer does what the recipe says."""
    with ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:  # of the server's environment alone
            patch.setenv("PYTHONPATH", str(install(tmp_path_factory.mktemp("scripted-trainer"))))
            folder = tmp_path_factory.mktemp("server")
            live = running.enter_context(running_server(tiny_base, folder, training=True))
        register_all(live, packages)
        yield live


def run(server: LiveServer, recipe: Path, seconds: float = 2.0, **train: Any) -> Outcome:
    """Five requests a second, and a job from half a second on."""
    made = scenario(
        {
            "arrivals": {"kind": "constant", "rate": 5, "duration_s": seconds},
            "adapters": {"names": ["red", "base"], "mix": {"kind": "round_robin"}},
        },
        disturbances=[{"kind": "train", "at_s": 0.5, "recipe": str(recipe), **train}],
    )
    address = TargetAddress(TargetKind.LORAPLEX, server.target, server.metrics_url)
    return asyncio.run(run_scenario(made, address))


def write_recipe(folder: Path, packages: Path, name: str, steps: int = 2, **script: Any) -> Path:
    file = folder / "recipe.yaml"
    document = {"name": name, "steps": steps, "script": {"package": str(packages / "green"), **script}}
    file.write_text(json.dumps(document))
    return file


def jobs(server: LiveServer, name: str) -> list[TrainingJob]:
    with server.client() as client:
        return [job for job in client.training.list() if job.adapter.endswith(f"/{name}")]


def adapters(server: LiveServer) -> set[str]:
    with server.client() as client:
        return {adapter.name for adapter in client.adapters.list()}


def assert_exact(outcome: Outcome) -> None:
    assert outcome.reconciliation is not None
    assert outcome.reconciliation.is_exact, outcome.reconciliation.as_json()


def test_a_job_is_followed_to_its_end_and_its_new_adapter_goes_with_the_run(
    scripted: LiveServer, packages: Path, tmp_path: Path
) -> None:
    before = adapters(scripted)

    outcome = run(scripted, write_recipe(tmp_path, packages, "followed"))

    (happened,) = outcome.happened
    (job,) = jobs(scripted, "followed")
    assert not happened.is_failure, happened.told
    assert happened.told.startswith(f"{job.name}: succeeded")
    assert job.state is TrainingJobState.SUCCEEDED
    moments = [happened.began_s, *(mark.at_s for mark in happened.marks), happened.ended_s]
    assert "train" in [mark.what for mark in happened.marks]
    assert moments == sorted(moments)
    assert_exact(outcome)
    assert adapters(scripted) == before


def test_a_job_keeps_its_adapter_where_the_scenario_says_so(
    scripted: LiveServer, packages: Path, tmp_path: Path
) -> None:
    run(scripted, write_recipe(tmp_path, packages, "kept"), tenant="team", delete_after=False)

    with scripted.client() as client:
        assert "candidate" in client.adapters.get("team/kept").aliases
        client.adapters.delete("team/kept")


def test_a_job_that_outlasts_the_load_is_cancelled_with_it(
    scripted: LiveServer, packages: Path, tmp_path: Path
) -> None:
    outcome = run(scripted, write_recipe(tmp_path, packages, "long", steps=10_000, step_s=0.1))

    (happened,) = outcome.happened
    assert not happened.is_failure
    assert re.search(r": cancelled, in train \d+ of 10000$", happened.told), happened.told
    assert [job.state for job in jobs(scripted, "long")] == [TrainingJobState.CANCELLED]


def test_what_the_gate_refuses_was_a_training_and_what_dies_was_a_failure(
    scripted: LiveServer, packages: Path, tmp_path: Path
) -> None:
    (refused,) = run(scripted, write_recipe(tmp_path, packages, "refused", verdict="fail")).happened
    (dead,) = run(scripted, write_recipe(tmp_path, packages, "dead", die_at=1)).happened

    assert not refused.is_failure
    assert "GATE_FAILED" in refused.told
    assert dead.is_failure
    assert "JOB_KILLED" in dead.told


def test_a_recipe_that_the_server_would_refuse_ends_the_run_before_its_load(
    scripted: LiveServer, packages: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, packages, "wrong", violations={"lora.rank": "is too large"})

    with pytest.raises(ScenarioInvalidError, match=r"lora\.rank: is too large"):
        run(scripted, recipe)

    assert not jobs(scripted, "wrong")


def test_a_server_that_does_not_train_says_so_before_the_load(tight_server: LiveServer) -> None:
    address = TargetAddress(TargetKind.LORAPLEX, tight_server.target, tight_server.metrics_url)

    with pytest.raises(TargetFeatureError, match=r"start it with --training.*loraplex train run"):
        asyncio.run(run_scenario(read_scenario(find_scenario("train-while-serving")), address))


def test_a_server_without_the_service_says_the_same(run_on_fake: RunOnFake) -> None:
    with pytest.raises(TargetFeatureError, match="cannot train"):
        run_on_fake(disturbances=[{"kind": "train", "at_s": 0}])


@pytest.mark.slow
def test_the_ready_scenario_trains_a_real_adapter_and_every_token_is_accounted_for(
    tiny_base: Path, packages: Path, tmp_path: Path
) -> None:
    with running_server(tiny_base, tmp_path / "server", training=True, training_threads=1) as server:
        register_all(server, packages)
        made = read_scenario(find_scenario("train-while-serving"), {"tokenizer": str(tiny_base)})
        address = TargetAddress(TargetKind.LORAPLEX, server.target, server.metrics_url)
        outcome = asyncio.run(run_scenario(of_duration(made, 16), address))
        (job,) = jobs(server, "loadtest-training")

    (happened,) = outcome.happened
    assert not happened.is_failure, happened.told
    assert not job.state.is_unfinished
    assert job.name in happened.told
    assert job.attempts == 1
    records = outcome.recording.records
    assert records
    assert all(one.tokens == one.usage_tokens == one.max_tokens for one in records)
    assert_exact(outcome)
