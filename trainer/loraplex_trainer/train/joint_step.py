"""One forward and backward pass over rows of several adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.losses import collate, token_losses
from loraplex_trainer.train.tokens import TokenRow


def add_adapters(base: Any, adapters: Mapping[str, tuple[Recipe, TrainingPlan, int]]) -> Any:
    """The base with one fresh adapter for each name, each drawn from its own seed as if it were alone."""
    from peft import get_peft_model
    from transformers import set_seed

    from loraplex_trainer.train.adapter import is_quantized, lora_config

    model: Any = None
    for name, (recipe, plan, seed) in adapters.items():
        set_seed(seed)
        if model is None:
            model = get_peft_model(base, lora_config(recipe, plan), adapter_name=name)
        else:
            model.add_adapter(name, lora_config(recipe, plan))
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            parameter.requires_grad_(True)  # PEFT freezes all but the active one
            if any(is_quantized(plan) for _, plan, _ in adapters.values()):
                parameter.data = parameter.data.to(torch.bfloat16)
    return model.eval()


def parameters_of(model: Any, adapter: str) -> list[Tensor]:
    """The adapter's weights, always in the same order."""
    return [p for name, p in model.named_parameters() if "lora_" in name and f".{adapter}." in name]


def joint_losses(
    model: Any, rows: Mapping[str, Sequence[TokenRow]], num_tokens: Mapping[str, int], pad: int
) -> dict[str, Tensor]:
    """Each adapter's summed loss over its rows, divided by its `num_tokens`; their sum may be differentiated.

    One forward pass for all rows: a row's adapter is its own, so the sum's gradient is each adapter's own.
    """
    names = [name for name, own in rows.items() for _ in own]
    device = next(model.parameters()).device
    batch = collate([row for own in rows.values() for row in own], pad, device, in_company=True)
    logits = model(**batch.model_inputs(), adapter_names=names).logits[:, :-1]
    losses = {}
    first = 0
    for name, own in rows.items():
        part = slice(first, first + len(own))
        losses[name] = token_losses(logits[part], batch.labels[part]).sum() / num_tokens[name]
        first += len(own)
    return losses


def smaller_batches(plan: TrainingPlan, num_adapters: int) -> TrainingPlan:
    """The plan with its share of the memory that one adapter alone was planned for; as many rows a step."""
    effective = plan.micro_batch * plan.accumulation
    micro = max(1, plan.micro_batch // num_adapters)
    return replace(plan, micro_batch=micro, accumulation=-(-effective // micro))
