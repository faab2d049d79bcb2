"""The recipe: everything that decides what an adapter becomes. Unknown keys are errors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from loraplex_adapters.base_spec import LORA_MODULES
from loraplex_trainer.errors import RecipeError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataFiles(_Section):
    """JSON Lines files, relative to the recipe."""

    train: Path
    eval: Path


class LoraSection(_Section):
    """Shape of the adapter."""

    rank: int = Field(default=8, ge=1, le=256)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = tuple(sorted(LORA_MODULES))

    @field_validator("target_modules")
    @classmethod
    def _served_modules_only(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(names) - set(LORA_MODULES))
        if unknown or not names:
            raise ValueError(f"must name modules out of {', '.join(LORA_MODULES)}, not {unknown}")
        return tuple(sorted(set(names)))


class TrainSection(_Section):
    """How the adapter is optimized: AdamW, cosine schedule after a linear warm-up."""

    epochs: float = Field(default=10, gt=0, le=100)
    learning_rate: float = Field(default=2e-4, gt=0, le=0.1)
    warmup_share: float = Field(default=0.03, ge=0, lt=1)  # of all optimizer steps
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, ge=1)
    max_length: int = Field(default=256, ge=8)  # tokens of a row; longer rows are an error
    seed: int = Field(default=42, ge=0)


class Recipe(_Section):
    """One adapter's recipe."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    base: str | None = None  # a Hugging Face folder or id; null is the default base
    # The chat template may add a system turn of its own where there is none, so it is always stated.
    system: str = Field(min_length=1)
    data: DataFiles
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    quant: Literal["none", "nf4"] = "none"  # nf4: QLoRA, the frozen base is held in 4 bits

    def sha256(self) -> str:
        """Hash of the recipe with all its defaults, hex."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; its data files become paths that can be opened.

    Raises RecipeError naming every wrong field and every missing file.
    """
    try:
        recipe = Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RecipeError(f"the recipe {path.name!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path.name} is not valid YAML") from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise RecipeError(f"{path.name}: " + "; ".join(problems)) from error
    missing = [
        str(file) for file in (recipe.data.train, recipe.data.eval) if not (path.parent / file).is_file()
    ]
    if missing:
        raise RecipeError(f"{path.name}: no such data file: {', '.join(missing)}")
    return recipe
