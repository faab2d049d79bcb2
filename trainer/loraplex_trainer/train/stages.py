"""What is trained in which order: the recipe's stages, each perhaps split by tier."""

from __future__ import annotations

from dataclasses import dataclass, replace

from loraplex_trainer.data.row import Row
from loraplex_trainer.data.tiers import TIERS, LossOf, with_tiers
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.recipe.sections import EpochsSection


@dataclass(frozen=True, slots=True)
class Stage:
    """One training of the adapter, with a fresh optimizer, from the best adapter of the stage before."""

    name: str
    train: tuple[Row, ...]
    val: tuple[Row, ...]
    epochs: EpochsSection
    learning_rate: float | None  # null: the plan's


def with_curriculum(stage: Stage, recipe: Recipe, loss_of: LossOf) -> list[Stage]:
    """The stage, split by tier as `curriculum` says; its epochs are shared out, the last tier gets the rest.

    loss_of  mean loss of each row under the base, asked only where tiers are to be made
    """
    if recipe.curriculum.mode == "off":
        return [stage]
    rows = list(stage.train)
    if recipe.curriculum.tiers == "auto":
        rows = with_tiers(rows, loss_of)
    tiers = sorted({row.tier or TIERS[0] for row in rows})
    each = max(1, stage.epochs.max // len(tiers))
    parts = []
    for index, tier in enumerate(tiers):
        allowed = tiers[: index + 1] if recipe.curriculum.mode == "cumulative" else [tier]
        chosen = tuple(row for row in rows if (row.tier or TIERS[0]) in allowed)
        most = each if index < len(tiers) - 1 else max(1, stage.epochs.max - each * index)
        epochs = EpochsSection(min=min(stage.epochs.min, most), max=most)
        parts.append(replace(stage, name=f"{stage.name}-tier-{tier}", train=chosen, epochs=epochs))
    return parts
