"""Trains one adapter: from recipe, data and plan to a run folder with the best adapter and a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraplex_trainer.data.row import Row
from loraplex_trainer.libraries import prepare_libraries, require_libraries
from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.events import StageStarted, TrainEvent
from loraplex_trainer.train.give_way import giving_way_to
from loraplex_trainer.train.opening import OpenedRun
from loraplex_trainer.train.report import TrainReport
from loraplex_trainer.train.run_folder import RunFolder, alone_in, storage_faults, write_json

if TYPE_CHECKING:
    from loraplex_trainer.data.built import BuiltData


def train(
    recipe: Recipe,
    recipe_folder: Path,
    run_folder: Path,
    base_folder: Path,
    *,
    plan: TrainingPlan | None = None,
    data: BuiltData | None = None,
    resume: bool = False,
    on_event: Callable[[TrainEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    wait_turn: Callable[[], None] | None = None,
) -> TrainReport:
    """Train into `run_folder`. Data is built, and the plan made, where they are not given.

    resume       go on after the newest whole checkpoint, as if nothing had happened; recipe and data must be the same
    should_stop  asked between optimizer steps; the report then says "cancelled", and the run can be resumed
    wait_turn    called between optimizer steps; returns when the next may begin; None: the recipe's `yield_to` decides

    The same recipe, data and seed give the same bytes on one CPU; on a GPU, nearly. Raises RecipeError,
    TrainingDataError, DoesNotFitError, RunFolderError, TrainingDivergedError, TrainingStorageError, BaseModelError.
    """
    prepare_libraries()
    require_libraries("matplotlib", "tensorboard")
    run = RunFolder(run_folder)
    emit = on_event or _ignore
    with storage_faults(), ExitStack() as held:
        if run.is_begun or not resume:
            held.enter_context(alone_in(run))
        if wait_turn is None and recipe.resources.yield_to is not None:
            wait_turn = held.enter_context(giving_way_to(recipe.resources.yield_to))
        opened = OpenedRun(recipe, recipe_folder, run, base_folder, emit)
        opened.open(resume)
        try:
            opened.prepare(plan, data)
            return _train_stages(opened, should_stop, wait_turn)
        except BaseException as error:
            opened.note_failure(error)
            raise


def _ignore(event: TrainEvent) -> None:
    """Nobody watches."""


def _train_stages(
    opened: OpenedRun, should_stop: Callable[[], bool] | None, wait_turn: Callable[[], None] | None
) -> TrainReport:
    """Run the stages that are not done yet, and write the report."""
    from transformers import set_seed

    from loraplex_trainer.base_model import load_for_training
    from loraplex_trainer.train.adapter import add_adapter, load_adapter
    from loraplex_trainer.train.peak_memory import PeakMemory
    from loraplex_trainer.train.sft import steps_per_epoch
    from loraplex_trainer.train.stage_run import RunContext, StageRun
    from loraplex_trainer.train.stages import with_curriculum

    recipe, plan, run = opened.recipe, opened.plan, opened.run
    memory = PeakMemory(plan)
    set_seed(recipe.train.seed)  # before the adapter's random A matrices are made
    model = add_adapter(load_for_training(opened.base, plan), recipe, plan)

    def loss_of(rows: Sequence[Row]) -> list[float]:
        return _losses_under(model, opened, rows)

    stages = [part for stage in opened.stages for part in with_curriculum(stage, recipe, loss_of)]
    steps = [steps_per_epoch(plan, len(stage.train)) * stage.epochs.max for stage in stages]
    context = RunContext(
        run=run,
        recipe=recipe,
        plan=plan,
        model=model,
        tokenizer=opened.tokenizer,
        memory=memory,
        num_steps=sum(steps),
        emit=opened.emit,
        should_stop=should_stop,
        wait_turn=wait_turn,
    )
    reports = opened.stage_reports()
    for index, stage in list(enumerate(stages))[len(reports) :]:
        if index > 0:
            load_adapter(model, run.best)
        run.change_state(stage=stage.name)
        opened.emit(StageStarted(stage.name, index, len(stages), len(stage.train), stage.epochs.max))
        report = StageRun(context, stage, index, sum(steps[:index])).run(opened.is_resumed)
        reports.append(report)
        if report.end != "done":
            break
        write_json(run.checkpoints / "stages.json", [asdict(done) for done in reports])
        run.change_state(stages_done=index + 1)
    return opened.finish(reports, memory.peak_bytes)


def _losses_under(model: Any, opened: OpenedRun, rows: Sequence[Row]) -> list[float]:
    """Mean loss of each row under the base alone."""
    from loraplex_trainer.train.losses import row_losses, tokens_at_once
    from loraplex_trainer.train.observer import autocast
    from loraplex_trainer.train.tokens import padding_id, render

    tokens = render(rows, opened.tokenizer, opened.recipe.system)
    with model.disable_adapter(), autocast(opened.plan):
        losses = row_losses(model, tokens, padding_id(opened.tokenizer), tokens_at_once(opened.plan))
    return [row.mean for row in losses]
