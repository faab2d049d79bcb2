"""`build_data`: from a recipe's sources to rows, a report, and a hash."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from loraplex_trainer.data.built import READABLE_REPORT, REPORT, ROWS, BuiltData, dataset_hash, row_lines
from loraplex_trainer.data.markdown import as_markdown
from loraplex_trainer.data.output import whole_folder
from loraplex_trainer.data.pipeline import Inputs, Steps, run_steps
from loraplex_trainer.data.progress import silent
from loraplex_trainer.data.questions.written import Ask
from loraplex_trainer.data.report import DataReport
from loraplex_trainer.data.reporting import report_of
from loraplex_trainer.data.served_base import served_base
from loraplex_trainer.errors import RecipeError, TrainingDataError
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.recipe.sections import DataSection, StageSection


def build_data(
    recipe: Recipe,
    recipe_folder: Path,
    output: Path,
    tokenizer: Any | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    ask: Ask | None = None,
) -> BuiltData:
    """Build the recipe's data into the folder `output`, whole or not at all; an earlier build there is replaced.

    tokenizer  of the base; None: lengths are not measured, and no row is too long
    ask        sends a prompt to a model, for questions and paraphrases; None: to the base of the recipe's server

    Raises TrainingDataError where the rows cannot be trained on, RecipeError where the recipe names no server but
    needs one, OutputError where the folder cannot be written.
    """
    return _build(recipe, recipe.data, None, recipe_folder, output, tokenizer, progress, ask)


def build_stage(
    recipe: Recipe,
    stage: StageSection,
    recipe_folder: Path,
    output: Path,
    tokenizer: Any | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    ask: Ask | None = None,
) -> BuiltData:
    """As `build_data`, for one stage: with its own sources, if it has any."""
    return _build(
        recipe, stage_data(recipe, stage), stage.name, recipe_folder, output, tokenizer, progress, ask
    )


def inspect_data(
    recipe: Recipe,
    recipe_folder: Path,
    tokenizer: Any | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    stage: StageSection | None = None,
    ask: Ask | None = None,
) -> DataReport:
    """The report of a build that writes nothing. Its `problems` say why the rows could not be trained on."""
    data = stage_data(recipe, stage) if stage is not None else recipe.data
    with ExitStack() as resources:
        inputs = _inputs(recipe, data, recipe_folder, tokenizer, progress, ask, resources)
        steps = run_steps(inputs)
    name = stage.name if stage is not None else None
    return report_of(steps, inputs, name, dataset_hash(steps.all_train, steps.val))


def stage_data(recipe: Recipe, stage: StageSection) -> DataSection:
    """The data section that a stage is built by."""
    return recipe.data if stage.sources is None else recipe.data.model_copy(update={"sources": stage.sources})


def _build(
    recipe: Recipe,
    data: DataSection,
    stage: str | None,
    folder: Path,
    output: Path,
    tokenizer: Any | None,
    progress: Callable[[str, int, int], None] | None,
    ask: Ask | None,
) -> BuiltData:
    with ExitStack() as resources:
        inputs = _inputs(recipe, data, folder, tokenizer, progress, ask, resources)
        steps = run_steps(inputs)
    if steps.problems:
        raise TrainingDataError("; ".join(steps.problems))
    sha256 = dataset_hash(steps.all_train, steps.val)
    report = report_of(steps, inputs, stage, sha256)
    with whole_folder(output, is_build) as work:
        _write(work, steps, report)
    return BuiltData(output, tuple(steps.all_train), tuple(steps.val), sha256, report, tuple(steps.warnings))


def is_build(folder: Path) -> bool:
    """Whether a folder holds an earlier build and nothing else."""
    names = {path.name for path in folder.iterdir()}
    return REPORT in names and names <= {ROWS, REPORT, READABLE_REPORT}


def _inputs(
    recipe: Recipe,
    data: DataSection,
    folder: Path,
    tokenizer: Any | None,
    progress: Callable[[str, int, int], None] | None,
    ask: Ask | None,
    resources: ExitStack,
) -> Inputs:
    needs = {
        "data.questions": data.questions.server if data.questions.written_by == "model" else None,
        "data.augment": data.augment.server if data.augment.method == "paraphrase" else None,
    }
    if data.questions.written_by == "model" or data.augment.method == "paraphrase":
        address = next((server for server in needs.values() if server), None)
        if ask is None and address is None:
            raise RecipeError("data: questions by a model and paraphrases need `server`, a server's address")
        if ask is None and address is not None:
            ask = resources.enter_context(served_base(address))
    return Inputs(recipe, data, folder, tokenizer, ask, progress or silent)


def _write(folder: Path, steps: Steps, report: DataReport) -> None:
    with (folder / ROWS).open("w", encoding="utf-8") as file:
        file.writelines(row_lines(steps.all_train, steps.val))
    (folder / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / READABLE_REPORT).write_text(as_markdown(report), encoding="utf-8")
