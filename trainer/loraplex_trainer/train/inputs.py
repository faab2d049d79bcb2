"""What a run begins with: rows by stage, and the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from loraplex_trainer.plan.training_plan import DataSize, TrainingPlan
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.recipe.sections import StageSection
from loraplex_trainer.train.run_folder import RunFolder
from loraplex_trainer.train.stages import Stage
from loraplex_trainer.train.tokens import TokenRow

if TYPE_CHECKING:
    from loraplex_trainer.data.built import BuiltData

Progress = Callable[[str, int, int], None]


def stages_of(
    recipe: Recipe,
    recipe_folder: Path,
    run: RunFolder,
    tokenizer: Any,
    data: BuiltData | None,
    progress: Progress,
) -> tuple[list[Stage], str, tuple[str, ...]]:
    """The recipe's stages with their rows, the hash of all data, and the builds' warnings.

    Data is built into the run folder, or read back from there by a run that goes on.
    """
    from loraplex_trainer.data.build import build_data, build_stage

    def own(section: StageSection) -> BuiltData:
        return _built(
            run.stage_data(section.name),
            lambda folder: build_stage(recipe, section, recipe_folder, folder, tokenizer, progress),
        )

    def shared() -> BuiltData:
        return _built(run.data, lambda folder: build_data(recipe, recipe_folder, folder, tokenizer, progress))

    if not recipe.stages:
        data = data or shared()
        return [_stage(StageSection(name="domain"), data, recipe)], data.sha256, data.warnings
    stages, built = [], {}
    for section in recipe.stages:
        if section.sources is None:
            data = data or shared()
            current = data
        else:
            current = own(section)
        built[current.folder] = current
        stages.append(_stage(section, current, recipe))
    digest = hashlib.sha256("".join(one.sha256 for one in built.values()).encode()).hexdigest()
    return stages, digest, tuple(warning for one in built.values() for warning in one.warnings)


def _stage(section: StageSection, data: BuiltData, recipe: Recipe) -> Stage:
    return Stage(
        section.name, data.train, data.val, section.epochs or recipe.train.epochs, section.learning_rate
    )


def _built(folder: Path, build: Callable[[Path], BuiltData]) -> BuiltData:
    from loraplex_trainer.data.built import load_built

    if (folder / "report.json").is_file():  # written last
        return load_built(folder)
    return build(folder)


def plan_for(recipe: Recipe, base_folder: Path, rows: Sequence[TokenRow]) -> TrainingPlan:
    """The plan for this machine and these rows. Raises DoesNotFitError."""
    from loraplex_trainer.plan.hardware import probe
    from loraplex_trainer.plan.planner import make_plan
    from loraplex_trainer.plan.shape import model_shape

    lengths = [len(row.input_ids) for row in rows]
    size = DataSize(len(rows), int(median(lengths)), max(lengths))
    return make_plan(recipe, model_shape(base_folder), probe(recipe.resources), size)
