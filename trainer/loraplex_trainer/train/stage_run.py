"""Runs one stage: from fresh or from a checkpoint, until it has ended, paused or been cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.adapter import export_checkpoint
from loraplex_trainer.train.callbacks.guard import GuardCallback
from loraplex_trainer.train.callbacks.keep_state import KeepStateCallback
from loraplex_trainer.train.callbacks.progress import ProgressCallback
from loraplex_trainer.train.callbacks.turns import RunCancelled, TurnsCallback
from loraplex_trainer.train.callbacks.watch import WatchCallback
from loraplex_trainer.train.checkpoints import (
    best_checkpoint,
    last_checkpoint,
    mend_best_path,
    read_kept_state,
)
from loraplex_trainer.train.events import TrainEvent
from loraplex_trainer.train.metrics import MetricsLog
from loraplex_trainer.train.observer import Observer
from loraplex_trainer.train.peak_memory import PeakMemory
from loraplex_trainer.train.report import StageEnd, StageReport
from loraplex_trainer.train.run_folder import RunFolder
from loraplex_trainer.train.sft import AdapterTrainer, new_trainer, stage_arguments
from loraplex_trainer.train.stages import Stage


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all stages of a run share."""

    run: RunFolder
    recipe: Recipe  # resolved
    plan: TrainingPlan
    model: Any  # PeftModel
    tokenizer: Any
    memory: PeakMemory
    num_steps: int  # of all stages, if none ends early
    emit: Callable[[TrainEvent], None]
    should_stop: Callable[[], bool] | None
    wait_turn: Callable[[], None] | None


class StageRun:
    """One stage. `index` and `steps_before` say where in the run it stands."""

    def __init__(self, context: RunContext, stage: Stage, index: int, steps_before: int) -> None:
        self._context = context
        self._stage = stage
        self._seed = context.recipe.train.seed + index
        self._steps_before = steps_before
        self._folder = context.run.stage_folder(index, stage.name)
        self._observer = Observer(
            context.run, context.recipe, context.plan, context.tokenizer, stage, context.emit
        )
        self._watch = WatchCallback(self._observer, steps_before, context.emit)

    def run(self, resume: bool) -> StageReport:
        """Train to the stage's end and export its best adapter into the run's `best`.

        resume  from the stage's newest whole checkpoint, if it has one

        Raises TrainingDivergedError.
        """
        checkpoint = last_checkpoint(self._folder) if resume else None
        kept: dict[str, Any] = read_kept_state(checkpoint) if checkpoint else {"step": 0, "epoch": 0.0}
        metrics = MetricsLog(
            self._context.run,
            self._stage.name,
            self._steps_before + kept["step"],
            is_anew=checkpoint is None,
        )
        self._observer.metrics = metrics
        try:
            self._trainer, progress = self._new_trainer(metrics)
            end = self._until_end(checkpoint, kept)
        finally:
            metrics.close()
        return StageReport(
            name=self._stage.name,
            end=end,
            num_rows=len(self._observer.train),
            num_val=len(self._observer.val),
            num_steps=max(self._trainer.state.global_step, kept["step"]),
            num_epochs=max(float(self._trainer.state.epoch or 0.0), kept["epoch"]),
            num_tokens=self._trainer.num_tokens,
            final_loss=progress.last_loss,
            best_epoch=self._observer.patience.best_epoch if self._observer.val else None,
            best_loss=self._observer.patience.best_loss,
            alarms=tuple({"epoch": alarm.epoch, "ratio": alarm.ratio} for alarm in self._observer.alarms),
        )

    def _new_trainer(self, metrics: MetricsLog) -> tuple[AdapterTrainer, ProgressCallback]:
        context, observer = self._context, self._observer
        progress = ProgressCallback(
            context.emit,
            metrics,
            context.memory,
            lambda: self._trainer.num_tokens,
            steps_before=self._steps_before,
            num_steps=context.num_steps,
        )
        arguments = stage_arguments(
            context.recipe,
            context.plan,
            self._folder,
            num_rows=len(observer.train),
            epochs=self._stage.epochs.max,
            learning_rate=self._stage.learning_rate,
            seed=self._seed,
            has_validation=bool(observer.val),
        )
        callbacks = [
            GuardCallback(),
            progress,
            self._watch,
            KeepStateCallback(self._state),
            TurnsCallback(context.wait_turn, context.should_stop),
        ]
        evaluation = self._evaluate if observer.val else None
        trainer = new_trainer(
            context.model, context.tokenizer, observer.train, arguments, evaluation, callbacks
        )
        return trainer, progress

    def _until_end(self, checkpoint: Path | None, kept: dict[str, Any]) -> StageEnd:
        best_step = kept.get("best_step")
        if checkpoint is not None:
            self._observer.restore(kept)
            mend_best_path(checkpoint)
        elif self._observer.val:
            self._evaluate(self._context.model)  # what the base knows, and the gap before the first step
        if not (kept.get("has_ended") or kept["epoch"] >= self._stage.epochs.max):
            try:
                self._trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except RunCancelled:
                return "cancelled"
            best_step = self._trainer.state.best_global_step
            if self._watch.pause is not None and not self._watch.has_ended:
                return "paused"
        best = best_checkpoint(self._folder, best_step)
        assert best is not None, "a stage that has ended has saved every epoch"
        export_checkpoint(best, self._context.run.best, self._context.recipe, self._context.plan)
        return "done"

    def _evaluate(self, model: Any) -> dict[str, float]:
        state = self._trainer.state
        losses = self._observer.evaluate(
            model, float(state.epoch or 0.0), self._steps_before + state.global_step
        )
        return {"eval_loss": losses.val, "eval_train_loss": losses.train}

    def _state(self) -> dict[str, Any]:
        """What a resumed stage needs beside the trainer's own checkpoint."""
        return {
            **self._observer.state(is_paused=self._watch.pause is not None),
            "run_step": self._steps_before + self._trainer.state.global_step,
            "has_ended": self._watch.has_ended,
            "best_step": self._trainer.state.best_global_step if self._observer.val else None,
        }
