"""The recipe with the plan's choices in the place of every `auto`."""

from __future__ import annotations

from typing import Any

from loraplex_trainer.plan.hardware import GIB
from loraplex_trainer.plan.training_plan import Method, TrainingPlan
from loraplex_trainer.recipe.document import Recipe

_BITS: dict[Method, int] = {"lora-bf16": 16, "lora-fp32": 16, "lora-int8": 8, "qlora-nf4": 4, "qlora-2bit": 2}


def resolve(recipe: Recipe, plan: TrainingPlan) -> Recipe:
    """The same training, spelled out.

    Two settings named `auto` are left, for they are decided by each file and each row: the format of a source and
    the tier of a row.
    """
    content = recipe.model_dump(mode="json")
    changes: dict[str, dict[str, Any]] = {
        "quant": {"bits": _BITS[plan.method], "compute": plan.compute, "skip": list(_skipped(recipe, plan))},
        "lora": {"rank": plan.rank, "alpha": plan.alpha, "targets": list(plan.target_modules)},
        "train": {
            "learning_rate": plan.learning_rate,
            "micro_batch": plan.micro_batch,
            "checkpointing": plan.checkpointing,
            "optimizer": plan.optimizer,
            "packing": plan.packing,
        },
        "resources": {"device": plan.device, "vram_gb": max(0.1, round(plan.available_bytes / GIB, 1))},
    }
    for section, values in changes.items():
        content[section] |= values
    content["method"] = "qlora" if plan.method.startswith("qlora") else "lora"
    return Recipe.model_validate(content)


def _skipped(recipe: Recipe, plan: TrainingPlan) -> tuple[str, ...]:
    """Groups expanded where they have an effect."""
    return plan.unquantized or recipe.quant.skip
