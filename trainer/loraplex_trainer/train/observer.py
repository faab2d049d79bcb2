"""Watches one adapter in one stage: validation, patience, overfit alarm, typical questions.

The same for an adapter that is trained alone and for one of several.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe
from loraplex_trainer.train.events import Evaluated, OverfitAlarm, Sampled, TrainEvent
from loraplex_trainer.train.losses import mean_loss, row_losses
from loraplex_trainer.train.metrics import MetricsLog
from loraplex_trainer.train.overfit import OverfitWatch, overfit_patch
from loraplex_trainer.train.patience import Patience
from loraplex_trainer.train.run_folder import RunFolder, append_line, write_text
from loraplex_trainer.train.samples import BadStreak, Sample, Sampler, typical_rows
from loraplex_trainer.train.stages import Stage
from loraplex_trainer.train.tokens import TokenRow, padding_id, render


@dataclass(frozen=True, slots=True)
class Losses:
    """Without dropout: of the validation rows, and of as many training rows."""

    val: float
    train: float


class Observer:
    """Owned by whoever trains; `metrics` is set before the first look.

    recipe   resolved
    adapter  PEFT's name of it where the model has several; None: the active one
    """

    metrics: MetricsLog

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        plan: TrainingPlan,
        tokenizer: Any,
        stage: Stage,
        emit: Callable[[TrainEvent], None],
        adapter: str | None = None,
    ) -> None:
        self.train = render(stage.train, tokenizer, recipe.system)
        self.val = render(stage.val, tokenizer, recipe.system)
        self.patience = Patience(recipe.train.patience, stage.epochs.min)
        self.alarms: list[OverfitAlarm] = []
        self._compared = fixed_sample(self.train, len(self.val), recipe.train.seed)
        self._overfit = OverfitWatch(recipe.overfit.ratio, recipe.overfit.widening_evals)
        self._streak = BadStreak(recipe.samples.pause_if_bad)
        asked = typical_rows(stage.val or stage.train, recipe.samples.n)
        limit = recipe.samples.max_new_tokens
        self._sampler = Sampler(asked, tokenizer, recipe.system, limit) if asked else None
        self._run = run
        self._recipe = recipe
        self._plan = plan
        self._stage = stage
        self._emit = emit
        self._pad = padding_id(tokenizer)
        self._adapter = adapter

    def evaluate(self, model: Any, epoch: float, step: int) -> Losses:
        """Measure, tell, write down. Sets the model to evaluation and leaves it there."""
        with autocast(self._plan):
            val = mean_loss(row_losses(model, self.val, self._pad, self._adapter))
            train = mean_loss(row_losses(model, self._compared, self._pad, self._adapter))
        event = Evaluated(epoch, val.loss, perplexity(val.loss), val.loss - train.loss)
        self._emit(event)
        scalars = {
            "eval/loss": val.loss,
            "eval/perplexity": event.perplexity,
            "eval/train_loss": train.loss,
            "eval/gap": event.gap,
            "eval/token_accuracy": val.token_accuracy,
        }
        self.metrics.write(step, epoch, scalars)
        return Losses(val.loss, train.loss)

    def judge(self, losses: Losses, epoch: float) -> bool:
        """Take in an epoch's evaluation; whether the stage ends with it."""
        self.patience.see(losses.val, epoch)
        is_over = self.patience.is_over(epoch)
        if self._overfit.see(losses.val, losses.train):
            self._alarm(epoch, losses.val / losses.train)
            is_over = is_over or self._recipe.overfit.on_alarm != "warn"
        return is_over

    def ask(self, model: Any, epoch: float, step: int) -> str | None:
        """Put the typical questions; why to pause, or None."""
        if self._sampler is None:
            return None
        samples = self._sampler.sample(model, self._stage.name, epoch, self._adapter)
        bad = [sample for sample in samples if sample.problems]
        self._write_samples(samples, epoch, step)
        self._emit(Sampled(epoch, len(samples), len(bad)))
        if not self._streak.see(samples):
            return None
        kinds = sorted({name for sample in bad for name in sample.problems})
        return (
            f"{len(bad)} of {len(samples)} sampled answers are bad ({', '.join(kinds)}) for the second epoch in a row: "
            "look at samples.jsonl and at the data"
        )

    def state(self, *, is_paused: bool) -> dict[str, Any]:
        """What a resumed stage needs. Whoever resumes a paused run has looked: bad epochs count from 0 again."""
        return {
            "patience": self.patience.state(),
            "gaps": self._overfit.gaps,
            "bad_epochs": 0 if is_paused else self._streak.epochs,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.patience.restore(state["patience"])
        self._overfit.gaps = list(state["gaps"])
        self._streak.epochs = state["bad_epochs"]

    def _alarm(self, epoch: float, ratio: float) -> None:
        import yaml

        patch = overfit_patch(self._recipe, self.patience.best_epoch)
        write_text(self._run.overfit_patch, yaml.safe_dump(patch, sort_keys=False))
        alarm = OverfitAlarm(epoch, ratio, patch)
        self.alarms.append(alarm)
        self._emit(alarm)

    def _write_samples(self, samples: Sequence[Sample], epoch: float, step: int) -> None:
        for sample in samples:
            append_line(self._run.samples, {"step": step, **sample.document()})
        scalars = {
            "samples/accuracy": sum(sample.is_right for sample in samples) / len(samples),
            "samples/bad_share": sum(bool(sample.problems) for sample in samples) / len(samples),
        }
        self.metrics.write(step, epoch, scalars)
        shown = "\n\n".join(
            f"**{s.question}**\n\nbase: {s.base}\n\nadapter: {s.adapter}\n\nreference: {s.reference}"
            for s in samples
        )
        self.metrics.text(step, "samples/answers", shown)


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
