"""Recipes of defaults, and the cases of the planner's table."""

from __future__ import annotations

from typing import Any

import pytest

from loraplex_trainer.recipe.document import Recipe, parse_recipe


def recipe_of(**changes: Any) -> Recipe:
    """All defaults but `changes`, which replace sections."""
    content = {"name": "x", "system": None, "data": {"sources": [{"path": "rows.jsonl"}]}, **changes}
    return parse_recipe(content, "test")


def data_of(**changes: Any) -> dict[str, Any]:
    """A data section."""
    return {"sources": [{"path": "rows.jsonl"}], **changes}


@pytest.fixture
def recipe() -> Recipe:
    return recipe_of()
