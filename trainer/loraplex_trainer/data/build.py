"""Stand-in until the data build is merged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loraplex_trainer.data.built import BuiltData
from loraplex_trainer.data.row import Message, Row
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.recipe.sections import StageSection


def build_data(
    recipe: Recipe,
    recipe_folder: Path,
    output: Path,
    tokenizer: Any | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> BuiltData:
    return _build(recipe.data.sources, recipe, recipe_folder, output)


def build_stage(
    recipe: Recipe,
    stage: StageSection,
    recipe_folder: Path,
    output: Path,
    tokenizer: Any | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> BuiltData:
    return _build(stage.sources, recipe, recipe_folder, output)


def _build(sources: Any, recipe: Recipe, recipe_folder: Path, output: Path) -> BuiltData:
    rows = []
    for source in sources:
        for number, line in enumerate((recipe_folder / source.path).read_text().splitlines(), 1):
            row = json.loads(line)
            prompt = tuple(
                Message(role=m["role"], content=m["content"]) for m in row["prompt"] if m["role"] != "system"
            )
            rows.append(
                Row(prompt, row["completion"][0]["content"], source.path, f"line {number}", row.get("tier"))
            )
    count = 0
    if recipe.data.val.share:
        count = max(recipe.data.val.min, round(recipe.data.val.share * len(rows)))
    order = sorted(rows, key=lambda row: row.id)
    val, train = order[:count], order[count:]
    sha = hashlib.sha256("".join(row.id for row in order).encode()).hexdigest()
    output.mkdir(parents=True, exist_ok=True)
    content = {"train": [asdict(r) for r in train], "val": [asdict(r) for r in val], "sha256": sha}
    (output / "report.json").write_text(json.dumps(content))
    return BuiltData(output, tuple(train), tuple(val), sha, {}, ())
