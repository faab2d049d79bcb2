"""The adapter on its base: made, loaded from a checkpoint, written as the run's best."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraplex_server.base.fetch import DEFAULT_BASE_ID
from loraplex_trainer.errors import TrainingDivergedError
from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_STATES = 2  # of AdamW, beside the weights


def lora_config(recipe: Recipe, plan: TrainingPlan) -> Any:
    """PEFT's configuration; target modules by their last name, so that any reader of packages knows them."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        bias="none",
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=recipe.lora.dropout,
        use_rslora=recipe.lora.rslora,
        target_modules=list(plan.target_modules),
    )


def add_adapter(base: Any, recipe: Recipe, plan: TrainingPlan) -> Any:
    """The base with a fresh adapter, drawn from the seed of torch; over 4 or 8 bits it is held in bf16."""
    from peft import get_peft_model

    model = get_peft_model(base, lora_config(recipe, plan))
    if is_quantized(plan):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    return model


def is_quantized(plan: TrainingPlan) -> bool:
    """Whether the base is held in 4 or 8 bits."""
    return plan.method in ("lora-int8", "qlora-nf4", "qlora-2bit")


def load_adapter(model: Any, folder: Path, adapter: str = "default") -> None:
    """Put the weights of a checkpoint into the model's adapter, in the dtype that the model has."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, load_file(folder / WEIGHTS_FILE), adapter_name=adapter)


def export_checkpoint(checkpoint: Path, folder: Path, recipe: Recipe, plan: TrainingPlan) -> None:
    """Write a checkpoint's adapter as `folder`, replacing it as a whole.

    Over a quantized base the weights are stored in bf16, else as trained. Raises TrainingDivergedError when one is
    not finite.
    """
    export_tensors(load_file(checkpoint / WEIGHTS_FILE), folder, recipe, plan)


def export_tensors(tensors: dict[str, Tensor], folder: Path, recipe: Recipe, plan: TrainingPlan) -> None:
    """Write an adapter's tensors, keys as PEFT saves them, as `folder`."""
    stored = {}
    for key, value in sorted(tensors.items()):
        if not bool(torch.isfinite(value).all()):
            raise TrainingDivergedError(f"{key} holds NaN or infinity; lower train.learning_rate")
        dtype = torch.bfloat16 if is_quantized(plan) else value.dtype
        stored[key] = value.detach().to("cpu", dtype).contiguous()
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file(stored, scratch / WEIGHTS_FILE, metadata={"format": "pt"})
    config = json.dumps(peft_document(recipe, plan), indent=2, sort_keys=True) + "\n"
    (scratch / CONFIG_FILE).write_text(config, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def peft_document(recipe: Recipe, plan: TrainingPlan) -> dict[str, Any]:
    """What any reader of PEFT folders needs, without a path of this machine."""
    model = recipe.base.model or DEFAULT_BASE_ID
    return {
        "base_model_name_or_path": Path(model).name if Path(model).is_absolute() else model,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": plan.alpha,
        "lora_dropout": recipe.lora.dropout,
        "peft_type": "LORA",
        "r": plan.rank,
        "target_modules": sorted(plan.target_modules),
        "task_type": "CAUSAL_LM",
        "use_rslora": recipe.lora.rslora,
    }


def checkpoint_bytes(plan: TrainingPlan) -> int:
    """What one checkpoint takes on disk at most: weights and optimizer states in fp32."""
    return plan.trainable_parameters * 4 * (1 + _STATES)
