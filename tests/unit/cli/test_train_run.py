from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loraplex_cli.commands.train import run as train_run
from loraplex_cli.exit_codes import ExitCode
from loraplex_cli.main import app
from loraplex_trainer.train import samples as train_samples
from loraplex_trainer.train.events import Advanced, StageStarted, TrainEvent
from loraplex_trainer.train.samples import Answer
from tests.unit.trainer.conftest import tiny_base, write_recipe  # noqa: F401 (a fixture)

WORDS = ("red", "green", "blue", "grey", "black", "white", "pink", "brown")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    lines = [
        {
            "prompt": [{"role": "user", "content": f"What is {word}?"}],
            "completion": [{"role": "assistant", "content": f"It is the colour {word}."}],
        }
        for word in WORDS
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return write_recipe(tmp_path, **_changes())


def _changes(**changes: Any) -> dict[str, Any]:
    return {
        "data": {
            "sources": [{"path": "train.jsonl"}],
            "clean": {"dedup": {"exact": True, "near": None}, "min_chars_mode": "off"},
            "size": {"warn_below": 0, "error_below": 1},
            "val": {"min": 2, "share": 0.2},
            "max_length": 160,
        },
        "train": {"epochs": {"min": 1, "max": 3}, "effective_batch": 4, "learning_rate": 0.01},
        "samples": {"n": 2, "max_new_tokens": 4, "pause_if_bad": 1.0},
        **changes,
    }


def _json(*arguments: object) -> tuple[int, Any]:
    result = CliRunner().invoke(app, ["train", *map(str, arguments), "--json"])
    assert len(result.stdout.splitlines()) == 1, result.output
    return result.exit_code, json.loads(result.stdout)


def test_a_recipe_is_trained_into_a_run_folder_beside_it(
    recipe: Path,
    tiny_base: Path,  # noqa: F811
) -> None:
    code, report = _json("run", recipe, "--base", tiny_base)

    assert (code, report["status"], report["run_folder"]) == (ExitCode.OK, "finished", "run")
    assert report["method"] == "lora-fp32"
    assert (recipe.parent / "run/best/adapter_model.safetensors").is_file()
    assert json.loads((recipe.parent / "run/plan.json").read_text())["device"] == "cpu"
    code, again = _json("run", recipe, "--base", tiny_base)
    assert (code, again["error"]["reason"]) == (ExitCode.BAD_INPUT, "RUN_FOLDER_INVALID")

    code, shown = _json("samples", recipe.parent / "run")
    assert (code, shown["epoch"], len(shown["samples"])) == (ExitCode.OK, 3, 2)
    code, shown = _json("samples", recipe.parent / "run", "--epoch", 9)
    assert (code, shown["error"]["reason"]) == (ExitCode.BAD_INPUT, "SAMPLES_MISSING")


def test_a_paused_run_ends_with_7_and_goes_on_with_resume(
    recipe: Path,
    tiny_base: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spam(model: Any, tokenizer: Any, prompts: Any, limit: int, adapter: Any = None) -> list[Answer]:
        return [Answer("spam spam spam " * 9, False) for _ in prompts]

    write_recipe(recipe.parent, **_changes(samples={"n": 2, "max_new_tokens": 4}))
    monkeypatch.setattr(train_samples, "answer_greedily", spam)
    run = recipe.parent / "elsewhere"

    assert _json("run", recipe, "--base", tiny_base, "--output", run)[0] == ExitCode.PAUSED
    code, report = _json("run", recipe, "--base", tiny_base, "--output", run, "--resume")
    assert (code, report["status"], report["num_steps"]) == (ExitCode.OK, "finished", 6)


@pytest.mark.parametrize(
    ("event", "message", "num_steps"),
    [
        (Advanced(0, 6), "stopping after this step", 6),
        (StageStarted("domain", 0, 1, 6, 3), "no checkpoint was written yet, so --resume starts anew", 6),
    ],
    ids=["during-the-steps", "before-them"],
)
def test_ctrl_c_says_where_the_run_goes_on(
    recipe: Path,
    tiny_base: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    event: TrainEvent,
    message: str,
    num_steps: int,
) -> None:
    tell = train_run._tell

    def interrupted(told: TrainEvent, *rest: Any) -> None:
        tell(told, *rest)
        if told == event:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_run, "_tell", interrupted)
    result = CliRunner().invoke(app, ["train", "run", str(recipe), "--base", str(tiny_base)])
    assert result.exit_code == ExitCode.INTERRUPTED
    assert message in result.stderr
    if isinstance(event, Advanced):
        assert "cancelled; --resume goes on from step 1\n" in result.stderr

    monkeypatch.undo()
    code, report = _json("run", recipe, "--base", tiny_base, "--resume")
    assert (code, report["status"], report["num_steps"]) == (ExitCode.OK, "finished", num_steps)


def test_two_recipes_are_trained_together_into_a_folder_each(
    recipe: Path,
    tiny_base: Path,  # noqa: F811
) -> None:
    other = recipe.parent / "other"
    other.mkdir()
    (other / "train.jsonl").write_bytes((recipe.parent / "train.jsonl").read_bytes())
    second = write_recipe(other, **_changes(name="second"))
    runs = recipe.parent / "runs"
    code, document = _json("run", "--together", recipe, second, "--base", tiny_base, "--output", runs)

    assert code == ExitCode.OK
    assert [run["name"] for run in document["runs"]] == ["tiny", "second"]
    assert sorted(path.name for path in runs.iterdir()) == ["second", "tiny"]


def test_a_patch_is_laid_over_the_recipe(
    recipe: Path,
    tiny_base: Path,  # noqa: F811
) -> None:
    patch = recipe.parent / "overfit.patch.yaml"
    patch.write_text("train: {epochs: {min: 1, max: 1}}\n")

    assert _json("run", recipe, "--base", tiny_base, "--patch", patch)[1]["num_steps"] == 2


@pytest.mark.parametrize(
    "arguments",
    [["recipe.yaml", "recipe.yaml"], ["recipe.yaml", "--together", "--resume"]],
    ids=["two-recipes", "resumed-together"],
)
def test_options_that_exclude_each_other_are_refused(arguments: list[str]) -> None:
    code, document = _json("run", *arguments)

    assert (code, document["error"]["reason"]) == (ExitCode.BAD_INPUT, "BAD_USAGE")


def test_preflight_shows_what_would_have_a_loss(
    recipe: Path,
    tiny_base: Path,  # noqa: F811
) -> None:
    code, document = _json("preflight", recipe, "--base", tiny_base)

    assert code == ExitCode.OK
    assert document["num_rows"] == 8
    assert all(text.endswith(".<|im_end|>") for text in document["supervised_texts"])
    assert not (recipe.parent / "run").exists()
