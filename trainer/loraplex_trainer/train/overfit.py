"""The overfit alarm, and the change of the recipe that it proposes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from loraplex_trainer.recipe.document import Recipe, parse_recipe


@dataclass(slots=True)
class OverfitWatch:
    """Alarms when validation loss is `ratio` times the training loss and the gap widened `widening_evals` times.

    Both losses are without dropout and on as many rows, so that a fresh adapter shows no gap but chance.
    """

    ratio: float
    widening_evals: int
    gaps: list[float] = field(default_factory=list)

    def see(self, eval_loss: float, train_loss: float) -> bool:
        """Take in one evaluation; whether it raises the alarm."""
        self.gaps.append(eval_loss - train_loss)
        recent = self.gaps[-self.widening_evals - 1 :]
        is_widening = len(recent) > self.widening_evals and all(
            later > earlier for earlier, later in pairwise(recent)
        )
        return is_widening and eval_loss >= self.ratio * train_loss


def overfit_patch(recipe: Recipe, best_epoch: float) -> dict[str, Any]:
    """More dropout and weight decay, no more epochs than were good, general conversations mixed in."""
    epochs = max(1, round(best_epoch))
    patch: dict[str, Any] = {
        "lora": {"dropout": min(0.5, max(0.10, 2 * recipe.lora.dropout))},
        "train": {
            "weight_decay": max(0.01, recipe.train.weight_decay),
            "epochs": {"min": min(recipe.train.epochs.min, epochs), "max": epochs},
        },
    }
    if recipe.data.general.path is None:
        patch["data"] = {"general": {"path": "bundled", "share": 0.10}}
    return patch


def apply_patch(recipe: Recipe, patch: Any, shown_as: str = "patch") -> Recipe:
    """The recipe with the patch's keys replaced, deeply. Raises RecipeError naming every wrong field."""
    return parse_recipe(_merged(recipe.model_dump(mode="json"), patch), shown_as)


def _merged(content: Any, patch: Any) -> Any:
    if not isinstance(content, dict) or not isinstance(patch, dict):
        return patch
    return {**content, **{key: _merged(content.get(key), value) for key, value in patch.items()}}
