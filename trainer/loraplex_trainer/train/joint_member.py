"""One adapter of a joint pass: its rows, optimizer, schedule, watches, best weights."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from loraplex_trainer.errors import TrainingDivergedError
from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.train.adapter import export_tensors
from loraplex_trainer.train.events import Advanced, Log, StageStarted, Step
from loraplex_trainer.train.joint_step import parameters_of
from loraplex_trainer.train.metrics import MetricsLog
from loraplex_trainer.train.observer import Observer
from loraplex_trainer.train.opening import OpenedRun
from loraplex_trainer.train.report import StageReport, TrainReport
from loraplex_trainer.train.sft import steps_per_epoch
from loraplex_trainer.train.tokens import TokenRow

_LOOK_EVERY = 10  # steps


class Member:
    """One adapter. `plan` has the batch sizes of the joint pass."""

    def __init__(self, run: OpenedRun, name: str, plan: TrainingPlan, model: Any, stack: ExitStack) -> None:
        (stage,) = run.stages
        self.name = name
        self.has_ended = False
        self._run = run
        self._plan = plan
        self._model = model
        self._stage = stage
        self._observer = Observer(run.run, run.recipe, run.plan, run.tokenizer, stage, run.emit, adapter=name)
        self._metrics = MetricsLog(run.run, stage.name, 0)
        stack.callback(self._metrics.close)
        self._observer.metrics = self._metrics
        self._parameters = parameters_of(model, name)
        self._per_epoch = steps_per_epoch(plan, len(self._observer.train))
        self._num_steps = self._per_epoch * stage.epochs.max
        self._optimizer = _optimizer(self._parameters, run)
        self._schedule = _schedule(self._optimizer, run, self._num_steps)
        self._order = random.Random(run.recipe.train.seed)
        self._waiting: list[TokenRow] = []
        self._best: dict[str, Tensor] | None = None
        self._step = 0
        self._num_tokens = 0
        self._loss: float | None = None
        self._started = time.monotonic()

    def begin(self) -> None:
        """Before the first step: what the base knows."""
        rows, most = len(self._observer.train), self._stage.epochs.max
        self._run.run.change_state(stage=self._stage.name)
        self._run.emit(StageStarted(self._stage.name, 0, 1, rows, most))
        if self._observer.val:
            self._observer.evaluate(self._model, 0.0, 0)
        self._started = time.monotonic()

    def next_batches(self) -> list[list[TokenRow]]:
        """The rows of the next optimizer step, in micro-batches."""
        if not self._waiting:
            self._waiting = self._order.sample(self._observer.train, len(self._observer.train))
        size, count = self._plan.micro_batch, self._plan.micro_batch * self._plan.accumulation
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return [taken[first : first + size] for first in range(0, len(taken), size)]

    def step(self, loss: float, num_tokens: int) -> None:
        """Move the weights by the gradients that are there, and take those away; `loss` is the step's mean."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._run.recipe.train.max_grad_norm)
        if not math.isfinite(loss) or not bool(torch.isfinite(norm)):
            raise TrainingDivergedError(
                f"the loss of {self.name} is not finite at step {self._step}; lower its train.learning_rate"
            )
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self._step += 1
        self._num_tokens += num_tokens
        self._loss = loss
        self._run.emit(Advanced(self._step, self._num_steps))
        if self._step % _LOOK_EVERY == 0 or self.is_at_end_of_epoch:
            self._tell(loss, float(norm))

    @property
    def is_at_end_of_epoch(self) -> bool:
        """Whether all rows had their turn."""
        return not self._waiting

    def end_epoch(self) -> None:
        """Evaluate, ask, keep the best, decide whether to go on."""
        epoch = float(self._step // self._per_epoch)
        why = self._observer.ask(self._model, epoch, self._step)
        if why is not None:
            self._run.emit(Log(f"warning: {why}; a joint pass does not pause"))
        is_over = epoch >= self._stage.epochs.max
        if self._observer.val:
            losses = self._observer.evaluate(self._model, epoch, self._step)
            is_over = self._observer.judge(losses, epoch) or is_over
            if self._observer.patience.best_epoch == epoch:
                self._best = self._weights()
        else:
            self._best = self._weights()
        if is_over:
            self.has_ended = True
            assert self._best is not None
            export_tensors(self._best, self._run.run.best, self._run.recipe, self._run.plan)

    def finish(self, peak_bytes: int, is_cancelled: bool) -> TrainReport:
        """Write the adapter's own report."""
        patience = self._observer.patience
        report = StageReport(
            name=self._stage.name,
            end="cancelled" if is_cancelled and not self.has_ended else "done",
            num_rows=len(self._observer.train),
            num_val=len(self._observer.val),
            num_steps=self._step,
            num_epochs=self._step / self._per_epoch,
            num_tokens=self._num_tokens,
            final_loss=self._loss,
            best_epoch=patience.best_epoch if self._observer.val else None,
            best_loss=patience.best_loss,
            alarms=tuple({"epoch": alarm.epoch, "ratio": alarm.ratio} for alarm in self._observer.alarms),
        )
        return self._run.finish([report], peak_bytes)

    def _weights(self) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self._model, adapter_name=self.name)
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def _tell(self, loss: float, norm: float) -> None:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        speed = self._num_tokens / elapsed
        left = (self._num_steps - self._step) * elapsed / self._step
        self._run.emit(Step(self._step, self._num_steps, loss, speed, left))
        scalars = {
            "train/loss": loss,
            "train/learning_rate": self._schedule.get_last_lr()[0],
            "train/grad_norm": norm,
            "train/tokens_per_s": speed,
        }
        self._metrics.write(self._step, self._step / self._per_epoch, scalars)


def _optimizer(parameters: Sequence[Tensor], run: OpenedRun) -> Any:
    settings: dict[str, Any] = {"lr": run.plan.learning_rate, "weight_decay": run.recipe.train.weight_decay}
    if run.plan.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=run.plan.device == "cuda", **settings)
    from bitsandbytes import optim

    kind = optim.PagedAdamW8bit if run.plan.optimizer == "paged_adamw_8bit" else optim.AdamW8bit
    return kind(parameters, **settings)


def _schedule(optimizer: Any, run: OpenedRun, num_steps: int) -> Any:
    from transformers import get_scheduler

    warmup = round(num_steps * run.recipe.train.warmup)
    return get_scheduler(
        run.recipe.train.scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=num_steps
    )
