"""Tiers of difficulty for a curriculum: 1 basic, 2 advanced, 3 expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from loraplex_trainer.data.row import Row
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.recipe.sections import CurriculumSection

TIERS = (1, 2, 3)
LossOf = Callable[[Sequence[Row]], Sequence[float]]
"""Loss of the base on each row's completion, in the order of the rows."""


def check_tiers(rows: Sequence[Row], curriculum: CurriculumSection) -> str | None:
    """A warning where a curriculum of given tiers meets rows without one.

    Raises TrainingDataError where no row has one.
    """
    if curriculum.mode == "off" or curriculum.tiers == "auto":
        return None
    without = sum(row.tier is None for row in rows)
    if without == len(rows):
        raise TrainingDataError(
            "curriculum.tiers is given, and no row has a tier: add the field `tier` (1 to 3), or say auto"
        )
    return f"{without} rows have no tier; the curriculum takes them as basic" if without else None


def with_tiers(rows: Sequence[Row], loss_of: LossOf) -> list[Row]:
    """Rows without a tier get one: thirds by the base's loss, the lowest are basic. Equal losses share a tier."""
    open_rows = [row for row in rows if row.tier is None]
    if not open_rows:
        return list(rows)
    losses = list(loss_of(open_rows))
    ranked = sorted(losses)
    bounds = (ranked[(len(ranked) - 1) // 3], ranked[(2 * len(ranked) - 1) // 3])
    tiers = iter([1 + sum(loss > bound for bound in bounds) for loss in losses])
    return [replace(row, tier=next(tiers)) if row.tier is None else row for row in rows]
