"""The same recipe without cleaning, to measure what cleaning is worth."""

from __future__ import annotations

from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.recipe.sections import CleanSection, DedupSection


def raw_recipe(recipe: Recipe) -> Recipe:
    """`recipe` with every step of `data.clean` off, personal data excepted: that is never trained on unless the
    recipe itself says so."""
    clean = CleanSection(
        pii=recipe.data.clean.pii,
        dedup=DedupSection(exact=False, near=None),
        min_chars_mode="off",
        lint="off",
        conflicts="report",
    )
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"clean": clean})})
