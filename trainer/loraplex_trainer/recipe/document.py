"""The recipe: everything that decides what an adapter becomes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from loraplex_trainer.errors import RecipeError
from loraplex_trainer.recipe.sections import (
    BaseSection,
    CurriculumSection,
    DataSection,
    EvalSection,
    GateSection,
    LoraSection,
    OverfitSection,
    QuantSection,
    ResourcesSection,
    SamplesSection,
    Section,
    StageSection,
    TrainSection,
)

_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"


class Recipe(Section):
    """One adapter's recipe, version 1."""

    version: Literal[1] = 1
    tenant: str = Field(default="default", pattern=_NAME)
    name: str = Field(pattern=_NAME)
    base: BaseSection = BaseSection()
    # Required, since a chat template may add a turn of its own where there is none. Null says: no system turn.
    system: str | None
    data: DataSection
    method: Literal["auto", "lora", "qlora"] = "auto"
    quant: QuantSection = QuantSection()
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    stages: tuple[StageSection, ...] = ()
    curriculum: CurriculumSection = CurriculumSection()
    overfit: OverfitSection = OverfitSection()
    samples: SamplesSection = SamplesSection()
    eval: EvalSection = EvalSection()
    gate: GateSection = GateSection()
    resources: ResourcesSection = ResourcesSection()

    @model_validator(mode="after")
    def _method_fits_bits(self) -> Recipe:
        if self.method == "lora" and self.quant.bits in (4, 2):
            raise ValueError("method lora trains over 16 or 8 bits; 4 and 2 bits are qlora")
        if self.method == "qlora" and self.quant.bits in (16, 8):
            raise ValueError("method qlora trains over 4 bits (or 2)")
        if self.system is not None and not self.system.strip():
            raise ValueError("system: say what the adapter is told, or null for no system turn")
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ValueError("stages: two have the same name")
        return self

    def sha256(self) -> str:
        """Hash of the recipe with all its defaults, hex."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Its paths stay relative to the recipe's folder.

    Raises RecipeError naming every wrong field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"the recipe {path.name!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path.name} is not valid YAML") from error
    return parse_recipe(content, path.name)


def parse_recipe(content: Any, shown_as: str) -> Recipe:
    """The recipe that `content` describes. Raises RecipeError naming every wrong field."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise RecipeError(f"{shown_as}: " + "; ".join(problems)) from error


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `read_recipe` reads back to the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
