"""What is trained in which order: the recipe's stages, each perhaps split by tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loraplex_trainer.data.row import Row
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.recipe.sections import EpochsSection

_NUM_TIERS = 3


@dataclass(frozen=True, slots=True)
class Stage:
    """One training of the adapter, with a fresh optimizer, from the best adapter of the stage before."""

    name: str
    train: tuple[Row, ...]
    val: tuple[Row, ...]
    epochs: EpochsSection
    learning_rate: float | None  # null: the plan's


def with_curriculum(
    stage: Stage, recipe: Recipe, losses_of: Callable[[Sequence[Row]], list[float]]
) -> list[Stage]:
    """The stage, split by tier as `curriculum` says; its epochs are shared out, the last tier gets the rest.

    losses_of  mean loss of each row under the base, asked only where tiers are to be made
    """
    if recipe.curriculum.mode == "off":
        return [stage]
    rows = stage.train
    if recipe.curriculum.tiers == "auto" and any(row.tier is None for row in rows):
        rows = by_loss(rows, losses_of(rows))
    tiers = sorted({row.tier or _NUM_TIERS for row in rows})
    each = max(1, stage.epochs.max // len(tiers))
    parts = []
    for index, tier in enumerate(tiers):
        is_cumulative = recipe.curriculum.mode == "cumulative"
        chosen = tuple(
            row
            for row in rows
            if (row.tier or _NUM_TIERS) == tier or (is_cumulative and (row.tier or _NUM_TIERS) < tier)
        )
        most = each if index < len(tiers) - 1 else max(1, stage.epochs.max - each * index)
        epochs = EpochsSection(min=min(stage.epochs.min, most), max=most)
        parts.append(replace(stage, name=f"{stage.name}-tier-{tier}", train=chosen, epochs=epochs))
    return parts


def by_loss(rows: Sequence[Row], losses: Sequence[float]) -> tuple[Row, ...]:
    """The rows in their order; those without a tier get one: thirds by loss, the lowest is tier 1."""
    open_rows = [i for i, row in enumerate(rows) if row.tier is None]
    order = sorted(open_rows, key=lambda i: (losses[i], rows[i].id))
    tier_of = {i: 1 + place * _NUM_TIERS // len(order) for place, i in enumerate(order)}
    return tuple(replace(row, tier=tier_of.get(i, row.tier)) for i, row in enumerate(rows))
