"""Steps, loss, speed, time left, peak memory: to whoever watches, and into the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from loraplex_trainer.train.events import Advanced, Step, TrainEvent
from loraplex_trainer.train.metrics import MetricsLog
from loraplex_trainer.train.peak_memory import PeakMemory


class ProgressCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Reports each step and each logged loss.

    steps_before  optimizer steps of the stages before this one
    num_steps     of all stages
    num_tokens    tells how many tokens, padding apart, were trained on in this stage since the process began
    """

    def __init__(
        self,
        emit: Callable[[TrainEvent], None],
        metrics: MetricsLog,
        memory: PeakMemory,
        num_tokens: Callable[[], int],
        *,
        steps_before: int,
        num_steps: int,
    ) -> None:
        self.last_loss: float | None = None
        self.tokens_per_s = 0.0
        self._emit = emit
        self._metrics = metrics
        self._memory = memory
        self._num_tokens = num_tokens
        self._steps_before = steps_before
        self._num_steps = num_steps
        self._first_step = 0
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts; `state` is past the first step where the training was resumed."""
        self._started = time.monotonic()
        self._first_step = state.global_step
        self._advanced(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Losses are looked at less often: each look makes the CPU wait for a GPU."""
        self._advanced(state)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Called with each logged dictionary; those of evaluations are another callback's."""
        if not logs or "loss" not in logs:
            return
        elapsed = max(time.monotonic() - self._started, 1e-9)
        done = state.global_step - self._first_step
        step = self._steps_before + state.global_step
        self.last_loss = float(logs["loss"])
        self.tokens_per_s = self._num_tokens() / elapsed
        left = max(0, self._num_steps - step)
        self._emit(
            Step(step, self._num_steps, self.last_loss, self.tokens_per_s, left * elapsed / max(1, done))
        )
        scalars = {
            "train/loss": self.last_loss,
            "train/learning_rate": float(logs.get("learning_rate", 0.0)),
            "train/tokens_per_s": self.tokens_per_s,
            "train/peak_memory_bytes": float(self._memory.peak_bytes),
        }
        if "grad_norm" in logs:
            scalars["train/grad_norm"] = float(logs["grad_norm"])
        self._metrics.write(step, float(state.epoch or 0.0), scalars)

    def _advanced(self, state: Any) -> None:
        self._emit(Advanced(self._steps_before + state.global_step, self._num_steps))
