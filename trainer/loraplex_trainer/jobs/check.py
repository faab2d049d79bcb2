"""Whether a job's recipe can be followed on the server that it was sent to: every wrong field at once."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from loraplex_server.training.messages import Checked, CheckOrder, LibraryMissing, Violation
from loraplex_trainer.jobs.recipe_files import found_files, named_files, problem_of_pattern
from loraplex_trainer.recipe.document import Recipe

_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
_NO_NETWORK = "must be null: a job reaches no server"


def check(order: CheckOrder) -> Checked | LibraryMissing:
    """Imports none of the libraries that train."""
    for library in _LIBRARIES:
        if find_spec(library) is None:
            return LibraryMissing(library)
    recipe, violations = read_job_recipe(order.recipe, order.tenant)
    if recipe is None:
        return Checked(violations, "", "auto")
    violations += _misfits(recipe, order)
    return Checked(violations, recipe.name, recipe.resources.device)


def read_job_recipe(text: str, tenant: str) -> tuple[Recipe | None, list[Violation]]:
    """The recipe of a tenant's job, and what is wrong with its fields; None where it is no recipe."""
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" in line {mark.line + 1}" if mark is not None else ""
        return None, [Violation("", f"is not valid YAML{at}")]
    if not isinstance(content, dict):
        return None, [Violation("", "must hold fields as 'name: value' lines")]
    violations = []
    if content.get("tenant", tenant) != tenant:
        violations.append(Violation("tenant", f"must be '{tenant}', the parent's, or be left out"))
    try:
        return Recipe.model_validate({**content, "tenant": tenant}), violations
    except ValidationError as error:
        violations += [
            Violation(".".join(map(str, entry["loc"])), entry["msg"].removeprefix("Value error, "))
            for entry in error.errors()
        ]
        return None, violations


def _misfits(recipe: Recipe, order: CheckOrder) -> Iterator[Violation]:
    """What of a sound recipe does not go with this server, its base and the files."""
    base = recipe.base
    if base.model not in (None, order.base_id):
        yield Violation("base.model", f"must be null or '{order.base_id}', the base that this server holds")
    if base.fingerprint not in (None, order.base_fingerprint):
        yield Violation("base.fingerprint", "is not that of the base that this server holds")
    for field, server in (
        ("data.questions.server", recipe.data.questions.server),
        ("data.augment.server", recipe.data.augment.server),
        ("resources.yield_to", recipe.resources.yield_to),
    ):
        if server is not None:
            yield Violation(field, _NO_NETWORK)
    if recipe.lora.rank != "auto" and recipe.lora.rank > order.max_rank:
        yield Violation("lora.rank", f"must be at most {order.max_rank}, the highest that this server serves")
    for named in named_files(recipe):
        if problem := problem_of_pattern(named.pattern):
            yield Violation(named.field, problem)
        elif not found_files(named.pattern, Path(order.folder)):
            yield Violation(
                named.field, f"names no file that was sent or lies in data_folder: {named.pattern}"
            )
