"""Recipes from the configuration files of LLaMA-Factory and Axolotl; what has no counterpart is listed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loraplex_trainer.errors import RecipeError
from loraplex_trainer.recipe.document import Recipe, parse_recipe
from loraplex_trainer.recipe.foreign_keys import KEYS, NotCarriedError, Origin

_DEFAULT_MICRO_BATCH = {"llamafactory": 8, "axolotl": 1}
_MIN_EPOCHS = 3


@dataclass(frozen=True, slots=True)
class Converted:
    """A recipe, and every key that did not find its way into it, with the reason."""

    recipe: Recipe
    not_carried_over: tuple[str, ...]


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
        known = KEYS[origin].get(key)
        if known is None:
            left.append(f"{key}: has no counterpart")
            continue
        try:
            converted = known.convert(value)
        except NotCarriedError as reason:
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
