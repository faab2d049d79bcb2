"""`loraplex train jobs …` against a scripted server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loraplex.v1 import training_pb2
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from tests.unit.client.scripted_server import ScriptedServer, running
from tests.unit.client.scripted_training import NAME

RECIPE = """
name: faq
tenant: team
system: null
data: {sources: [{path: "data/*.jsonl"}, {path: 问答.txt}]}
eval: {domain: eval.jsonl}
"""


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with running(ScriptedServer()) as server:
        yield server


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with everything that it names."""
    (tmp_path / "data").mkdir()
    for name in ("data/a.jsonl", "data/b.jsonl", "data/other.csv", "问答.txt", "eval.jsonl"):
        (tmp_path / name).write_text(name)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def run(script: ScriptedServer, *words: str) -> Result:
    return CliRunner().invoke(app, ["train", "jobs", *words, "--server", script.target])


def documents(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_create_sends_what_the_recipe_names_and_nothing_else(script: ScriptedServer, recipe: Path) -> None:
    result = run(script, "create", str(recipe), "--alias", "canary", "--json")

    assert result.exit_code == ExitCode.OK, result.output
    (document,) = documents(result)
    assert document["queued"]
    assert document["job"]["name"] == NAME
    (request,) = script.training.requests
    assert isinstance(request, training_pb2.CreateTrainingJobRequest)
    assert (request.parent, request.alias, request.recipe) == ("tenants/team", "canary", RECIPE)
    assert [file.name for file in request.files] == [
        "data/a.jsonl",
        "data/b.jsonl",
        "eval.jsonl",
        "问答.txt",
    ]
    assert request.files[0].content == b"data/a.jsonl"


def test_a_folder_of_the_server_takes_no_files_along(script: ScriptedServer, recipe: Path) -> None:
    result = run(script, "create", str(recipe), "--on-server", "/srv/data", "--tenant", "other")

    assert result.exit_code == ExitCode.OK, result.output
    (request,) = script.training.requests
    assert isinstance(request, training_pb2.CreateTrainingJobRequest)
    assert (request.parent, request.data_folder, list(request.files)) == ("tenants/other", "/srv/data", [])


def test_a_file_that_is_not_there_is_told_before_anything_is_sent(
    script: ScriptedServer, recipe: Path
) -> None:
    (recipe.parent / "eval.jsonl").unlink()

    result = run(script, "create", str(recipe), "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert "eval.domain" in documents(result)[0]["error"]["message"]
    assert script.training.requests == []


def test_a_recipe_with_wrong_fields_is_bad_input(script: ScriptedServer, recipe: Path) -> None:
    recipe.write_text("name: faq\ncolour: red")

    result = run(script, "create", str(recipe), "--json")

    assert result.exit_code == ExitCode.BAD_INPUT
    assert documents(result)[0]["error"]["reason"] == "RECIPE_INVALID"
    assert script.training.requests == []


@pytest.mark.parametrize("words", [("get", NAME), ("cancel", NAME), ("resume", NAME)], ids=lambda w: w[0])
def test_one_job_is_one_document(script: ScriptedServer, words: tuple[str, ...]) -> None:
    (document,) = documents(run(script, *words, "--json"))
    assert document["job"]["progress"] == {
        "stage": "train",
        "step": 3,
        "num_steps": 9,
        "loss": 0.5,
        "eta_seconds": None,
    }

    text = run(script, *words).stdout
    assert "train 3/9 loss 0.5" in text
    assert NAME in text


def test_the_list_is_one_document_or_a_table(script: ScriptedServer) -> None:
    script.training.num_listed = 3

    (document,) = documents(run(script, "list", "--tenant", "team", "--json"))
    assert len(document["jobs"]) == 3
    assert len(run(script, "list").stdout.splitlines()) == 4
    assert script.training.requests[0] == training_pb2.ListTrainingJobsRequest(parent="tenants/team")


def test_watch_prints_each_event(script: ScriptedServer) -> None:
    result = run(script, "watch", NAME, "--after", "2", "--json")

    assert result.exit_code == ExitCode.OK
    assert [document["event"]["sequence"] for document in documents(result)] == [3, 4, 5]
    assert "train  3/5  loss=0.5" in run(script, "watch", NAME).stdout


JOB = training_pb2.TrainingJob


@pytest.mark.parametrize(
    ("state", "verdict", "reason", "code"),
    [
        (JOB.STATE_FAILED, JOB.VERDICT_FAIL, "GATE_FAILED", ExitCode.WRONG_RESULT),
        (JOB.STATE_FAILED, JOB.VERDICT_INCONCLUSIVE, "GATE_INCONCLUSIVE", ExitCode.INCONCLUSIVE),
        (JOB.STATE_FAILED, JOB.VERDICT_UNSPECIFIED, "TRAINING_DOES_NOT_FIT", ExitCode.DOES_NOT_FIT),
        (JOB.STATE_FAILED, JOB.VERDICT_UNSPECIFIED, "TRAINING_DATA_INVALID", ExitCode.BAD_INPUT),
        (JOB.STATE_FAILED, JOB.VERDICT_UNSPECIFIED, "JOB_KILLED", ExitCode.FAILURE),
        (JOB.STATE_PAUSED, JOB.VERDICT_UNSPECIFIED, "JOB_PAUSED", ExitCode.PAUSED),
        (JOB.STATE_CANCELLED, JOB.VERDICT_UNSPECIFIED, "JOB_CANCELLED", ExitCode.FAILURE),
    ],
    ids=["gate", "inconclusive", "fit", "data", "killed", "paused", "cancelled"],
)
def test_who_waits_for_a_job_learns_its_end_from_the_exit_code(
    script: ScriptedServer, recipe: Path, state: Any, verdict: Any, reason: str, code: ExitCode
) -> None:
    script.training.state, script.training.verdict = state, verdict
    if state == JOB.STATE_FAILED:
        script.training.failure = JOB.Failure(reason=reason, message="why")

    result = run(script, "create", str(recipe), "--wait", "--json")

    assert result.exit_code == code
    (document,) = documents(result)
    assert document["error"]["reason"] == reason
    assert document["error"]["job"]["name"] == NAME
    assert run(script, "watch", NAME).exit_code == code
