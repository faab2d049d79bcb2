"""Recipes, rows and files for the tests of the data build."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from loraplex_trainer.data.row import Message, Row
from loraplex_trainer.recipe.document import Recipe, parse_recipe

GOLDEN = Path(__file__).parent / "golden"


def recipe_of(sources: Sequence[str] | Sequence[dict[str, Any]], **changes: Any) -> Recipe:
    """A recipe over the sources; `changes` replace parts of its `data`, and with `recipe=` parts of the whole."""
    whole = changes.pop("recipe", {})
    data = {
        "sources": [{"path": source} if isinstance(source, str) else source for source in sources],
        "size": {"warn_below": 0, "error_below": 1},
        "val": {"share": 0.0},
        **changes,
    }
    return parse_recipe({"name": "test", "system": "Be brief.", "data": data, **whole}, "recipe.yaml")


def row(question: str, answer: str, **fields: Any) -> Row:
    """A row of one turn."""
    fields = {"source": "rows.jsonl", "origin": "rows.jsonl, line 1", **fields}
    return Row(prompt=(Message(role="user", content=question),), completion=answer, **fields)


def write_pairs(path: Path, pairs: Iterable[tuple[str, str]], **fields: Any) -> Path:
    """A JSON Lines file of questions and answers; `fields` stand in every line."""
    lines = [json.dumps({"question": q, "answer": a, **fields}, ensure_ascii=False) for q, a in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


_OBJECTS = (
    "lamp",
    "kettle",
    "bicycle",
    "violin",
    "printer",
    "ladder",
    "tent",
    "compass",
    "blender",
    "saddle",
)
_MAKERS = (
    "Arden",
    "Bexwell",
    "Corvin",
    "Dunmore",
    "Eastley",
    "Farrow",
    "Garrick",
    "Holt",
    "Ingram",
    "Jessop",
)


def facts(count: int) -> list[tuple[str, str]]:
    """Questions that differ in their words, and answers that say something."""
    names = [f"{maker} {thing}" for maker in _MAKERS for thing in _OBJECTS]
    return [
        (
            f"Where is the {names[i % 100]} number {i} kept?",
            f"The {names[i % 100]} number {i} is kept in hall {i * 7 % 91}, on the upper shelf by the door.",
        )
        for i in range(count)
    ]


def pairs_of(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """(question, answer) of each row, sorted."""
    return sorted((row.question, row.completion) for row in rows)
