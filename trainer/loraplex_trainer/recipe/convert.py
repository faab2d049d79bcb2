"""Recipes from the configuration files of LLaMA-Factory and Axolotl; what has no counterpart is listed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from loraplex_trainer.errors import RecipeError
from loraplex_trainer.recipe.document import Recipe, parse_recipe

Origin = Literal["llamafactory", "axolotl"]
_SCHEDULERS = ("constant_with_warmup", "cosine", "linear")
_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_DEFAULT_MICRO_BATCH = {"llamafactory": 8, "axolotl": 1}
_MIN_EPOCHS = 3


class _NotCarried(Exception):
    """A value that has no counterpart; says why."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A recipe, and every key that did not find its way into it, with the reason."""

    recipe: Recipe
    not_carried_over: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Key:
    """Where a value goes in the recipe, and what it becomes there."""

    target: str  # dotted
    convert: Callable[[Any], Any] = lambda value: value


def _one_of(allowed: Mapping[str, str]) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if str(value) not in allowed:
            raise _NotCarried(f"{value} has no counterpart")
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
            raise _NotCarried(f"{value} is not offered; {meaning}")

    return convert


_NOWHERE = ""
_SHARED = {
    "lora_alpha": _Key("lora.alpha"),
    "lora_dropout": _Key("lora.dropout"),
    "learning_rate": _Key("train.learning_rate", float),
    "weight_decay": _Key("train.weight_decay", float),
    "max_grad_norm": _Key("train.max_grad_norm", float),
    "warmup_ratio": _Key("train.warmup", float),
    "seed": _Key("train.seed"),
}
_SCHEDULER = _Key("train.scheduler", _one_of({name: name for name in _SCHEDULERS}))
_OPTIMIZER = _Key("train.optimizer", _one_of(_OPTIMIZERS))
_KEYS: dict[Origin, dict[str, _Key]] = {
    "llamafactory": {
        **_SHARED,
        "model_name_or_path": _Key("base.model"),
        "stage": _Key(_NOWHERE, _only("sft", "training is on answers")),
        "do_train": _Key(_NOWHERE, _only(True, "a recipe trains")),
        "finetuning_type": _Key(_NOWHERE, _only("lora", "only adapters are trained")),
        "lora_rank": _Key("lora.rank"),
        "lora_target": _Key("lora.targets", _targets),
        "use_rslora": _Key("lora.rslora"),
        "quantization_bit": _Key("quant.bits"),
        "quantization_type": _Key("quant.type"),
        "double_quantization": _Key("quant.double"),
        "cutoff_len": _Key("data.max_length"),
        "lr_scheduler_type": _SCHEDULER,
        "optim": _OPTIMIZER,
        "packing": _Key("train.packing"),
        "disable_gradient_checkpointing": _Key("train.checkpointing", lambda value: not value),
        "early_stopping_steps": _Key("train.patience"),
        "default_system": _Key("system"),
    },
    "axolotl": {
        **_SHARED,
        "base_model": _Key("base.model"),
        "lora_r": _Key("lora.rank"),
        "lora_target_modules": _Key("lora.targets", _targets),
        "peft_use_rslora": _Key("lora.rslora"),
        "sequence_len": _Key("data.max_length"),
        "lr_scheduler": _SCHEDULER,
        "optimizer": _OPTIMIZER,
        "sample_packing": _Key("train.packing"),
        "gradient_checkpointing": _Key("train.checkpointing", bool),
        "early_stopping_patience": _Key("train.patience"),
        "default_system_message": _Key("system"),
    },
}


def import_recipe(path: Path, origin: Origin) -> Converted:
    """Convert one file. Raises RecipeError where it is not such a file, or a value is out of range."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path.name} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path.name} is not valid YAML") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path.name} has no settings")
    return convert(content, origin, path.stem)


def convert(content: Mapping[str, Any], origin: Origin, stem: str) -> Converted:
    """The recipe that does what `content` asks for, as far as it can be said. `stem` becomes its name."""
    recipe: dict[str, Any] = {"name": _name(stem), "system": None}
    left: list[str] = []
    special = {"llamafactory": _llamafactory, "axolotl": _axolotl}[origin](content, recipe)
    _batches(content, origin, recipe, special)
    for key, value in content.items():
        if key in special or value is None:
            continue
        known = _KEYS[origin].get(key)
        if known is None:
            left.append(f"{key}: has no counterpart")
            continue
        try:
            converted = known.convert(value)
        except _NotCarried as reason:
            left.append(f"{key}: {reason}")
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{stem}: {key}: {value!r} is not what it should be") from error
        else:
            if known.target:
                _put(recipe, known.target, converted)
    if not recipe.get("data", {}).get("sources"):
        raise RecipeError(f"{stem}: names no data set; add its files to the {origin} file first")
    return Converted(parse_recipe(recipe, stem), tuple(left))


def _llamafactory(content: Mapping[str, Any], recipe: dict[str, Any]) -> set[str]:
    """What takes several keys together; returns them."""
    names = content.get("dataset") or ""
    folder = content.get("dataset_dir") or "data"
    files = names if isinstance(names, list) else str(names).split(",")
    sources = [{"path": f"{folder}/{str(name).strip()}.json"} for name in files if name]
    _put(recipe, "data.sources", sources)
    _validation(content, "val_size", recipe)
    _epochs(content, "num_train_epochs", recipe)
    if content.get("quantization_bit") == 4:
        recipe["method"] = "qlora"
    _compute(content, recipe)
    return {"dataset", "dataset_dir", "val_size", "num_train_epochs", "bf16", "fp16"}


def _axolotl(content: Mapping[str, Any], recipe: dict[str, Any]) -> set[str]:
    """What takes several keys together; returns them."""
    if content.get("adapter") not in ("lora", "qlora"):
        raise RecipeError("adapter: only lora and qlora are trained here, not the whole model")
    entries = content.get("datasets")
    files = (
        [entry.get("path") for entry in entries if isinstance(entry, dict)]
        if isinstance(entries, list)
        else []
    )
    _put(recipe, "data.sources", [{"path": file} for file in files if file])
    _validation(content, "val_set_size", recipe)
    _epochs(content, "num_epochs", recipe)
    if content["adapter"] == "qlora" or content.get("load_in_4bit"):
        recipe["method"] = "qlora"
        _put(recipe, "quant.bits", 4)
    elif content.get("load_in_8bit"):
        _put(recipe, "quant.bits", 8)
    if content.get("lora_target_linear"):
        _put(recipe, "lora.targets", "all-linear")
    _compute(content, recipe)
    special = {"datasets", "val_set_size", "num_epochs", "adapter", "load_in_4bit", "load_in_8bit"}
    return special | {"lora_target_linear", "bf16", "fp16"}


def _number(content: Mapping[str, Any], key: str) -> float | None:
    """None where the key is absent or null. Raises RecipeError naming the key."""
    value = content.get(key)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise RecipeError(f"{key}: {value!r} is not a number of at least 0")
    return number


def _batches(content: Mapping[str, Any], origin: Origin, recipe: dict[str, Any], special: set[str]) -> None:
    """Micro-batch × accumulation is the effective batch; how it is split is the plan's affair."""
    micro = "per_device_train_batch_size" if origin == "llamafactory" else "micro_batch_size"
    accumulation = "gradient_accumulation_steps"
    special |= {micro, accumulation}
    if micro in content or accumulation in content:
        rows = _number(content, micro) or _DEFAULT_MICRO_BATCH[origin]
        _put(recipe, "train.effective_batch", int(rows * (_number(content, accumulation) or 1)))


def _validation(content: Mapping[str, Any], key: str, recipe: dict[str, Any]) -> None:
    """A share, or from one on a number of rows."""
    size = _number(content, key)
    if size is None:
        return
    if size == 0:
        _put(recipe, "data.val", {"share": 0.0, "min": 0})
    elif size < 1:
        _put(recipe, "data.val", {"share": size})
    else:
        _put(recipe, "data.val", {"share": 0.99, "min": int(size), "max": int(size)})


def _epochs(content: Mapping[str, Any], key: str, recipe: dict[str, Any]) -> None:
    count = _number(content, key)
    if count is not None:
        most = max(1, math.ceil(count))
        _put(recipe, "train.epochs", {"min": min(_MIN_EPOCHS, most), "max": most})


def _compute(content: Mapping[str, Any], recipe: dict[str, Any]) -> None:
    """`auto` stays the plan's choice."""
    for dtype in ("bf16", "fp16"):
        if content.get(dtype) is True:
            _put(recipe, "quant.compute", dtype)


def _put(recipe: dict[str, Any], target: str, value: Any) -> None:
    *sections, field = target.split(".")
    for section in sections:
        recipe = recipe.setdefault(section, {})
    recipe[field] = value


def _name(stem: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    return name[:63].strip("-") or "imported"
