"""`loraplex train data`."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from typer.testing import CliRunner

from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from tests.unit.trainer.data.support import facts, write_pairs


def _recipe(folder: Path, count: int = 40, **changes: object) -> Path:
    write_pairs(folder / "rows.jsonl", facts(count))
    recipe = {"name": "test", "system": "Be brief.", "data": {"sources": [{"path": "rows.jsonl"}]}, **changes}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def _run(*arguments: str) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(app, ["train", "data", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_build_writes_the_folder_and_prints_one_document(tmp_path: Path) -> None:
    code, document = _run("build", str(_recipe(tmp_path)), "--output", str(tmp_path / "out"), "--no-lengths")

    assert code == ExitCode.OK
    assert (document["train"], document["val"]) == (20, 20)
    assert (tmp_path / "out/report.md").is_file()


def test_lengths_are_counted_with_the_tokenizer_of_the_recipes_base(tmp_path: Path, tiny_base: Path) -> None:
    recipe = _recipe(tmp_path, base={"model": str(tiny_base)})

    code, document = _run("inspect", str(recipe))

    assert code == ExitCode.OK
    assert document["lengths"]["is_measured"]  # type: ignore[index]
    assert not (tmp_path / "data-build").exists()


def test_inspect_reports_data_that_cannot_be_trained_on_and_ends_with_bad_input(tmp_path: Path) -> None:
    code, document = _run("inspect", str(_recipe(tmp_path, count=5)), "--no-lengths")

    assert code == ExitCode.BAD_INPUT
    assert document["problems"]


def test_build_of_such_data_is_an_error_with_its_reason(tmp_path: Path) -> None:
    code, document = _run("build", str(_recipe(tmp_path, count=5)), "--no-lengths")

    assert code == ExitCode.BAD_INPUT
    assert document["error"]["reason"] == "TRAINING_DATA_INVALID"  # type: ignore[index]


def test_a_stage_is_chosen_by_name(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, stages=[{"name": "basics"}])

    code, document = _run("inspect", str(recipe), "--stage", "basics", "--no-lengths")
    wrong, error = _run("inspect", str(recipe), "--stage", "none", "--no-lengths")

    assert (code, document["stage"]) == (ExitCode.OK, "basics")
    assert wrong == ExitCode.BAD_INPUT
    assert error["error"]["reason"] == "RECIPE_INVALID"  # type: ignore[index]
