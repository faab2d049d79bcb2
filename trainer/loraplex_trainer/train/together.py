"""Trains several adapters in one pass over one base: mixed batches, each with its own optimizer and stop.

A row meets its own adapter only, so every adapter gets the gradients that it would get alone. Out of reach here:
dropout (PEFT mixes adapters in evaluation mode only), activation checkpointing, packing, stages, curriculum, resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraplex_trainer.errors import RecipeError, RunFolderError
from loraplex_trainer.libraries import prepare_libraries, require_libraries
from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.events import TrainEvent
from loraplex_trainer.train.give_way import giving_way_to
from loraplex_trainer.train.opening import OpenedRun
from loraplex_trainer.train.report import TrainReport
from loraplex_trainer.train.run_folder import RunFolder, alone_in, storage_faults

if TYPE_CHECKING:
    from loraplex_trainer.data.built import BuiltData


@dataclass(frozen=True, slots=True)
class TogetherRun:
    """One of the adapters. `plan` and `data` as in `train`."""

    recipe: Recipe
    recipe_folder: Path
    run_folder: Path
    plan: TrainingPlan | None = None
    data: BuiltData | None = None


def train_together(
    runs: Sequence[TogetherRun],
    base_folder: Path,
    *,
    on_event: Callable[[str, TrainEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    wait_turn: Callable[[], None] | None = None,
) -> list[TrainReport]:
    """Train all; the reports are in the order of `runs`.

    on_event  called with the adapter's internal name, "t-TENANT--NAME", and the event

    Raises RecipeError where the recipes cannot be trained together, RunFolderError where a folder holds a run
    already, and what `train` raises.
    """
    from loraplex_trainer.train.joint_loop import JointLoop

    check_together([run.recipe for run in runs])
    _check_folders(runs)
    prepare_libraries()
    require_libraries("matplotlib", "tensorboard")
    with storage_faults(), ExitStack() as held:
        for run in runs:
            held.enter_context(alone_in(RunFolder(run.run_folder)))
        servers = [run.recipe.resources.yield_to for run in runs]
        if wait_turn is None and (server := next(filter(None, servers), None)) is not None:
            wait_turn = held.enter_context(giving_way_to(server))
        opened = [_open(run, base_folder, on_event) for run in runs]
        try:
            for one, run in zip(opened, runs, strict=True):
                one.prepare(run.plan, run.data)
            check_plans([one.plan for one in opened])
            with ExitStack() as stack:
                loop = JointLoop(opened, [internal_name(run.recipe) for run in runs], stack)
                return loop.run(should_stop, wait_turn)
        except BaseException as error:
            for one in opened:
                one.note_failure(error)
            raise


def internal_name(recipe: Recipe) -> str:
    """How PEFT calls the adapter: never a part of a word that PEFT looks for in parameter names."""
    return f"t-{recipe.tenant}--{recipe.name}"


def check_together(recipes: Sequence[Recipe]) -> None:
    """Raises RecipeError naming every recipe that cannot be part of a joint pass, and why."""
    problems = []
    for recipe in recipes:
        wrong = {
            "lora.dropout must be 0": recipe.lora.dropout > 0,
            "train.packing must be off": recipe.train.packing is True,
            "train.checkpointing must be off or auto": recipe.train.checkpointing is True,
            "stages must be empty": bool(recipe.stages),
            "curriculum must be off": recipe.curriculum.mode != "off",
        }
        problems += [f"{recipe.tenant}/{recipe.name}: {what}" for what, is_so in wrong.items() if is_so]
    if len({internal_name(recipe) for recipe in recipes}) < len(recipes):
        problems.append("two recipes have the same tenant and name")
    if len({recipe.resources.yield_to for recipe in recipes} - {None}) > 1:
        problems.append("the recipes yield to different servers")
    if len({recipe.base.model for recipe in recipes}) > 1:
        problems.append("the recipes name different bases")
    if problems:
        raise RecipeError("these recipes cannot be trained together: " + "; ".join(problems))


def check_plans(plans: Sequence[TrainingPlan]) -> None:
    """Raises RecipeError unless all plans hold the base in the same way."""
    ways = {(p.method, p.compute, p.device, p.unquantized, p.double_quant) for p in plans}
    if len(ways) > 1:
        methods = ", ".join(sorted({plan.method for plan in plans}))
        raise RecipeError(
            f"the plans hold the base differently ({methods}); give all recipes the same method and quant"
        )
    if any(plan.checkpointing or plan.packing for plan in plans):
        raise RecipeError(
            "the plans need activation checkpointing or packing, which a joint pass has not; train one by one"
        )


def _check_folders(runs: Sequence[TogetherRun]) -> None:
    """Raises RunFolderError before any folder is taken, so that a second try finds the others untouched."""
    begun = [run.run_folder.name for run in runs if RunFolder(run.run_folder).is_begun]
    if begun:
        raise RunFolderError(
            f"{', '.join(begun)} already hold a run, and a joint pass does not go on with one; give another --output"
        )


def _open(
    run: TogetherRun, base_folder: Path, on_event: Callable[[str, TrainEvent], None] | None
) -> OpenedRun:
    name = internal_name(run.recipe)

    def emit(event: TrainEvent) -> None:
        if on_event is not None:
            on_event(name, event)

    opened = OpenedRun(run.recipe, run.recipe_folder, RunFolder(run.run_folder), base_folder, emit)
    opened.open(resume=False)
    return opened
