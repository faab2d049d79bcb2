"""The recipe as JSON Schema, and a first recipe to fill in."""

from __future__ import annotations

from typing import Any

import yaml

from loraplex_trainer.recipe.document import Recipe, parse_recipe

_TEMPLATE = """\
# A recipe of `loraplex train`. Every setting and its default: `loraplex train recipe schema`.
version: 1
tenant: {tenant}
name: {name}
base: {{model: null}}  # a Hugging Face folder or id; null is SmolLM2-135M-Instruct
# What the adapter is always told; the server must send the same. null: no system turn.
system: {system}
data:
  # Alpaca, ShareGPT, messages, prompt/completion, CSV, Parquet, YAML, text, PDF, HTML; patterns may name many files.
  sources:
    - {{path: {path}, format: auto, licence: null}}
  general: {{path: bundled, share: 0.10}}  # against forgetting
  max_length: 1024  # tokens; longer rows are listed and dropped
method: auto  # lora or qlora, by the memory there is: `loraplex train plan`
lora: {{rank: auto, alpha: auto, dropout: 0.05, targets: all-linear}}
train:
  learning_rate: auto
  epochs: {{min: 3, max: 10}}  # ends early where validation stops improving
  effective_batch: 16
  seed: 42
# What decides whether it is registered, in points of accuracy.
gate: {{min_domain_gain: 0.0, max_general_drop: 2.0}}
"""


def recipe_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of a recipe file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def new_recipe(name: str, path: str, system: str | None, tenant: str = "default") -> str:
    """YAML of a recipe over the files that `path` names, its most important settings spelled out.

    Raises RecipeError, e.g. for a name that cannot be an adapter's.
    """
    fields = {"name": name, "path": path, "system": system, "tenant": tenant}
    text = _TEMPLATE.format(**{key: _scalar(value) for key, value in fields.items()})
    parse_recipe(yaml.safe_load(text), "the new recipe")
    return text


def _scalar(value: str | None) -> str:
    """As YAML, on one line."""
    text: str = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=10**6, default_style='"'
    )
    return "null" if value is None else text.strip()
