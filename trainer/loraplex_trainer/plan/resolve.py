"""Stand-in until the planner is merged."""

from __future__ import annotations

from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe, parse_recipe


def resolve(recipe: Recipe, plan: TrainingPlan) -> Recipe:
    content = recipe.model_dump(mode="json")
    content["method"] = "qlora" if plan.method.startswith("qlora") else "lora"
    content["lora"].update(rank=plan.rank, alpha=plan.alpha)
    content["train"].update(
        learning_rate=plan.learning_rate,
        micro_batch=plan.micro_batch,
        checkpointing=plan.checkpointing,
        optimizer=plan.optimizer,
    )
    return parse_recipe(content, "resolved")
