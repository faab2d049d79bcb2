"""Runs one stage: from fresh or from a checkpoint, until it has ended, paused or been cancelled."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.adapter import export_checkpoint
from loraplex_trainer.train.callbacks.guard import GuardCallback
from loraplex_trainer.train.callbacks.keep_state import KeepStateCallback
from loraplex_trainer.train.callbacks.progress import ProgressCallback
from loraplex_trainer.train.callbacks.sampling import SamplingCallback
from loraplex_trainer.train.callbacks.turns import RunCancelled, TurnsCallback
from loraplex_trainer.train.callbacks.watch import WatchCallback
from loraplex_trainer.train.checkpoints import (
    best_checkpoint,
    last_checkpoint,
    mend_best_path,
    read_kept_state,
)
from loraplex_trainer.train.events import Evaluated, OverfitAlarm, TrainEvent
from loraplex_trainer.train.losses import mean_loss, row_losses
from loraplex_trainer.train.metrics import MetricsLog
from loraplex_trainer.train.overfit import OverfitWatch, overfit_patch
from loraplex_trainer.train.patience import Patience
from loraplex_trainer.train.peak_memory import PeakMemory
from loraplex_trainer.train.run_folder import RunFolder, append_line, write_text
from loraplex_trainer.train.samples import BadStreak, Sample, Sampler, typical_rows
from loraplex_trainer.train.sft import AdapterTrainer, new_trainer, stage_arguments
from loraplex_trainer.train.stages import Stage
from loraplex_trainer.train.tokens import TokenRow, padding_id, render

StageEnd = Literal["done", "paused", "cancelled"]


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


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did. Epochs and losses of the best validation, where there was one."""

    name: str
    end: StageEnd
    num_rows: int
    num_val: int
    num_steps: int
    num_epochs: float
    num_tokens: int  # in this process
    final_loss: float | None
    best_epoch: float | None
    best_loss: float | None
    alarms: tuple[dict[str, Any], ...]


class StageRun:
    """One stage. `index` and `steps_before` say where in the run it stands."""

    def __init__(self, context: RunContext, stage: Stage, index: int, steps_before: int) -> None:
        recipe = context.recipe
        self._context = context
        self._stage = stage
        self._seed = recipe.train.seed + index
        self._steps_before = steps_before
        self._folder = context.run.stage_folder(index, stage.name)
        self._train = render(stage.train, context.tokenizer, recipe.system)
        self._val = render(stage.val, context.tokenizer, recipe.system)
        self._compared = fixed_sample(self._train, len(self._val), recipe.train.seed)
        self._patience = Patience(recipe.train.patience, stage.epochs.min)
        self._overfit = OverfitWatch(recipe.overfit.ratio, recipe.overfit.widening_evals)
        self._watch = WatchCallback(
            self._patience,
            self._overfit,
            context.emit,
            self._alarm,
            stops_on_alarm=recipe.overfit.on_alarm != "warn",
        )
        asked = typical_rows(stage.val or stage.train, recipe.samples.n)
        sampler = Sampler(asked, context.tokenizer, recipe.system, recipe.samples.max_new_tokens)
        self._streak = BadStreak(recipe.samples.pause_if_bad)
        self._sampling = SamplingCallback(
            lambda epoch: sampler.sample(context.model, stage.name, epoch) if asked else (),
            self._keep_samples,
            self._streak,
            context.emit,
        )

    def run(self, resume: bool) -> StageReport:
        """Train to the stage's end and export its best adapter into the run's `best`.

        resume  from the stage's newest whole checkpoint, if it has one

        Raises TrainingDivergedError.
        """
        checkpoint = last_checkpoint(self._folder) if resume else None
        kept: dict[str, Any] = read_kept_state(checkpoint) if checkpoint else {"step": 0, "epoch": 0.0}
        self._metrics = MetricsLog(self._context.run, self._stage.name, self._steps_before + kept["step"])
        try:
            self._trainer, progress = self._new_trainer()
            end = self._until_end(checkpoint, kept)
        finally:
            self._metrics.close()
        return StageReport(
            name=self._stage.name,
            end=end,
            num_rows=len(self._train),
            num_val=len(self._val),
            num_steps=max(self._trainer.state.global_step, kept["step"]),
            num_epochs=max(float(self._trainer.state.epoch or 0.0), kept["epoch"]),
            num_tokens=self._trainer.num_tokens,
            final_loss=progress.last_loss,
            best_epoch=self._patience.best_epoch if self._val else None,
            best_loss=self._patience.best_loss,
            alarms=tuple({"epoch": alarm.epoch, "ratio": alarm.ratio} for alarm in self._watch.alarms),
        )

    def _new_trainer(self) -> tuple[AdapterTrainer, ProgressCallback]:
        context, recipe = self._context, self._context.recipe
        progress = ProgressCallback(
            context.emit,
            self._metrics,
            context.memory,
            lambda: self._trainer.num_tokens,
            steps_before=self._steps_before,
            num_steps=context.num_steps,
        )
        arguments = stage_arguments(
            recipe,
            context.plan,
            self._folder,
            num_rows=len(self._train),
            epochs=self._stage.epochs.max,
            learning_rate=self._stage.learning_rate,
            seed=self._seed,
            has_validation=bool(self._val),
        )
        callbacks = [
            GuardCallback(),
            progress,
            TurnsCallback(context.wait_turn, context.should_stop),
            self._watch,
            self._sampling,
            KeepStateCallback(self._state),
        ]
        evaluation = self._evaluate if self._val else None
        trainer = new_trainer(context.model, context.tokenizer, self._train, arguments, evaluation, callbacks)
        return trainer, progress

    def _until_end(self, checkpoint: Path | None, kept: dict[str, Any]) -> StageEnd:
        best_step = kept.get("best_step")
        if checkpoint is not None:
            self._restore(kept)
        elif self._val:
            self._evaluate(self._context.model)  # what the base knows, and the gap before the first step
        if not (kept.get("has_ended") or kept["epoch"] >= self._stage.epochs.max):
            if checkpoint is not None:
                mend_best_path(checkpoint)
            try:
                self._trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except RunCancelled:
                return "cancelled"
            best_step = self._trainer.state.best_global_step
            if self._sampling.pause is not None and not self._watch.has_ended:
                return "paused"
        best = best_checkpoint(self._folder, best_step)
        assert best is not None, "a stage that has ended has saved every epoch"
        export_checkpoint(best, self._context.run.best, self._context.recipe, self._context.plan)
        return "done"

    def _evaluate(self, model: Any) -> dict[str, float]:
        state = self._trainer.state
        epoch, step = float(state.epoch or 0.0), self._steps_before + state.global_step
        pad = padding_id(self._context.tokenizer)
        with autocast(self._context.plan):
            val = mean_loss(row_losses(model, self._val, pad))
            train = mean_loss(row_losses(model, self._compared, pad))
        self._context.memory.look()
        event = Evaluated(epoch, val.loss, perplexity(val.loss), val.loss - train.loss)
        self._context.emit(event)
        scalars = {
            "eval/loss": val.loss,
            "eval/perplexity": event.perplexity,
            "eval/train_loss": train.loss,
            "eval/gap": event.gap,
            "eval/token_accuracy": val.token_accuracy,
        }
        self._metrics.write(step, epoch, scalars)
        return {"eval_loss": val.loss, "eval_train_loss": train.loss}

    def _keep_samples(self, epoch: float, step: int, samples: Sequence[Sample]) -> None:
        step += self._steps_before
        for sample in samples:
            append_line(self._context.run.samples, {"step": step, **sample.document()})
        scalars = {
            "samples/accuracy": sum(sample.is_right for sample in samples) / len(samples),
            "samples/bad_share": sum(bool(sample.problems) for sample in samples) / len(samples),
        }
        self._metrics.write(step, epoch, scalars)
        shown = "\n\n".join(
            f"**{s.question}**\n\nbase: {s.base}\n\nadapter: {s.adapter}\n\nreference: {s.reference}"
            for s in samples
        )
        self._metrics.text(step, "samples/answers", shown)

    def _alarm(self, epoch: float, ratio: float, best_epoch: float) -> OverfitAlarm:
        import yaml

        patch = overfit_patch(self._context.recipe, best_epoch)
        write_text(self._context.run.overfit_patch, yaml.safe_dump(patch, sort_keys=False))
        return OverfitAlarm(epoch, ratio, patch)

    def _state(self) -> dict[str, Any]:
        """What a resumed stage needs beside the trainer's own checkpoint."""
        return {
            "patience": self._patience.state(),
            "gaps": self._overfit.gaps,
            # Whoever resumes a paused run has looked: the count begins again.
            "bad_epochs": 0 if self._sampling.pause is not None else self._streak.epochs,
            "has_ended": self._watch.has_ended,
            "best_step": self._trainer.state.best_global_step if self._val else None,
        }

    def _restore(self, kept: dict[str, Any]) -> None:
        self._patience.restore(kept["patience"])
        self._overfit.gaps = list(kept["gaps"])
        self._streak.epochs = kept["bad_epochs"]


def fixed_sample(rows: Sequence[TokenRow], count: int, seed: int) -> list[TokenRow]:
    """As many rows as there are for validation, or all; the same in every epoch and every resumption."""
    return random.Random(seed).sample(list(rows), min(count, len(rows)))


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that has no float."""
    return math.exp(loss) if loss < 700 else math.inf


def autocast(plan: TrainingPlan) -> Any:
    """The precision that the trainer's own forward passes have."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[plan.compute]
    return torch.autocast(plan.device, dtype=dtype, enabled=plan.compute != "fp32")
