"""One run on the tiny base, trained for real until it knows its colours, and packages made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraplex_trainer.packaging.package import package_run
from loraplex_trainer.recipe.document import Recipe, read_recipe
from loraplex_trainer.train.run_folder import RunFolder
from loraplex_trainer.train.session import train

from ..conftest import SYSTEM
from ..train.conftest import COLOURS, tiny_plan

RANK = 8
NewPackage = Callable[[], Path]


def question(word: str, **changes: Any) -> dict[str, Any]:
    """A line of eval.jsonl."""
    return {
        "id": f"colour/{word}",
        "system": SYSTEM,
        "question": f"What is {word}?",
        "answer": f"{word.title()}.",
        "grader": "exact",
        "expected": word,
        **changes,
    }


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_colour_recipe(folder: Path, base: Path, **changes: Any) -> Path:
    """A recipe that teaches the colours, with its data."""
    import yaml

    trained = [
        {
            "prompt": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"What is {word}?"},
            ],
            "completion": [{"role": "assistant", "content": f"{word.title()}."}],
        }
        for word in COLOURS
    ]
    write_lines(folder / "train.jsonl", trained)
    write_lines(folder / "eval.jsonl", [question("mauve", question="Which colour is mauve?")])
    content: dict[str, Any] = {
        "tenant": "paint",
        "name": "colours",
        "base": {"model": str(base), "licence": "Apache-2.0"},
        "system": SYSTEM,
        "data": {
            "sources": [
                {
                    "path": "train.jsonl",
                    "format": "prompt-completion",
                    "licence": "CC-BY-4.0",
                    "attribution": "A. Painter",
                }
            ],
            "clean": {"dedup": {"exact": True, "near": None}, "min_chars_mode": "off"},
            "size": {"warn_below": 0, "error_below": 1},
            "val": {"min": 0, "share": 0.0},
            "max_length": 160,
        },
        "lora": {"rank": RANK, "alpha": 2 * RANK, "dropout": 0.0},
        "train": {"epochs": {"min": 20, "max": 20}, "effective_batch": 2, "learning_rate": 0.015, "seed": 7},
        "samples": {"n": 1, "max_new_tokens": 2, "pause_if_bad": 1.0},
        "eval": {"domain": "eval.jsonl", "general": ["mini-glue"], "max_questions": 6, "on": "fp32"},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.fixture(scope="session")
def recipe_file(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only; its folder has the data too."""
    return write_colour_recipe(tmp_path_factory.mktemp("recipe"), tiny_base)


@pytest.fixture(scope="session")
def recipe(recipe_file: Path) -> Recipe:
    return read_recipe(recipe_file)


@pytest.fixture(scope="session")
def run(
    recipe_file: Path, recipe: Recipe, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """A finished run. Read-only: copy it to change it."""
    folder = tmp_path_factory.mktemp("runs") / "colours"
    report = train(
        recipe,
        recipe_file.parent,
        folder,
        tiny_base,
        plan=tiny_plan(rank=RANK, alpha=2.0 * RANK, learning_rate=0.015),
    )
    assert report.status == "finished"
    # Only now, else the data build would take the questions that are asked out of those that are trained on.
    write_lines(recipe_file.parent / "eval.jsonl", [question(word) for word in COLOURS])
    return RunFolder(folder)


@pytest.fixture
def own_run(run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run that the test may change."""
    return RunFolder(shutil.copytree(run.path, tmp_path / "run"))


@pytest.fixture
def package(run: RunFolder, tiny_base: Path, tmp_path: Path) -> Path:
    """A package that the test may change."""
    return package_run(run, tiny_base, tmp_path / "package")
