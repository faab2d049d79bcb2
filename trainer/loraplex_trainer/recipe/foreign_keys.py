"""Keys of LLaMA-Factory's and Axolotl's files that a recipe has a place for, one to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Origin = Literal["llamafactory", "axolotl"]
_SCHEDULERS = ("constant_with_warmup", "cosine", "linear")
_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


class NotCarriedError(Exception):
    """A value that has no counterpart; says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """Where a value goes in the recipe, and what it becomes there."""

    target: str  # dotted
    convert: Callable[[Any], Any] = lambda value: value


def _one_of(allowed: Mapping[str, str]) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if str(value) not in allowed:
            raise NotCarriedError(f"{value} has no counterpart")
        return allowed[str(value)]

    return convert


def _targets(value: Any) -> Any:
    if value in ("all", "all-linear"):
        return "all-linear"
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _only(expected: Any, meaning: str) -> Callable[[Any], None]:
    """A value that says what happens here anyway."""

    def convert(value: Any) -> None:
        if value != expected:
            raise NotCarriedError(f"{value} is not offered; {meaning}")

    return convert


NOWHERE = ""
_SHARED = {
    "lora_alpha": Key("lora.alpha"),
    "lora_dropout": Key("lora.dropout"),
    "learning_rate": Key("train.learning_rate", float),
    "weight_decay": Key("train.weight_decay", float),
    "max_grad_norm": Key("train.max_grad_norm", float),
    "warmup_ratio": Key("train.warmup", float),
    "seed": Key("train.seed"),
}
_SCHEDULER = Key("train.scheduler", _one_of({name: name for name in _SCHEDULERS}))
_OPTIMIZER = Key("train.optimizer", _one_of(_OPTIMIZERS))
KEYS: dict[Origin, dict[str, Key]] = {
    "llamafactory": {
        **_SHARED,
        "model_name_or_path": Key("base.model"),
        "stage": Key(NOWHERE, _only("sft", "training is on answers")),
        "do_train": Key(NOWHERE, _only(True, "a recipe trains")),
        "finetuning_type": Key(NOWHERE, _only("lora", "only adapters are trained")),
        "lora_rank": Key("lora.rank"),
        "lora_target": Key("lora.targets", _targets),
        "use_rslora": Key("lora.rslora"),
        "quantization_bit": Key("quant.bits"),
        "quantization_type": Key("quant.type"),
        "double_quantization": Key("quant.double"),
        "cutoff_len": Key("data.max_length"),
        "lr_scheduler_type": _SCHEDULER,
        "optim": _OPTIMIZER,
        "packing": Key("train.packing"),
        "disable_gradient_checkpointing": Key("train.checkpointing", lambda value: not value),
        "early_stopping_steps": Key("train.patience"),
        "default_system": Key("system"),
    },
    "axolotl": {
        **_SHARED,
        "base_model": Key("base.model"),
        "lora_r": Key("lora.rank"),
        "lora_target_modules": Key("lora.targets", _targets),
        "peft_use_rslora": Key("lora.rslora"),
        "sequence_len": Key("data.max_length"),
        "lr_scheduler": _SCHEDULER,
        "optimizer": _OPTIMIZER,
        "sample_packing": Key("train.packing"),
        "gradient_checkpointing": Key("train.checkpointing", bool),
        "early_stopping_patience": Key("train.patience"),
        "default_system_message": Key("system"),
    },
}
