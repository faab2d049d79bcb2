"""Follows a running training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from loraplex_trainer.train.run import TrainProgress


class ProgressCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Reports each logged loss, remembers the last, and stops a training whose loss is not finite."""

    def __init__(self, progress: Callable[[TrainProgress], None] | None) -> None:
        self.last_loss = 0.0
        self._progress = progress

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Called by the trainer with each logged dictionary."""
        if not logs or "loss" not in logs:
            # The summary at the end has the mean of all steps: all there is of a very short training.
            self.last_loss = self.last_loss or float((logs or {}).get("train_loss", 0.0))
            return
        from loraplex_trainer.train.run import TrainProgress

        self.last_loss = float(logs["loss"])
        if self.last_loss != self.last_loss:
            control.should_training_stop = True
        if self._progress is not None:
            self._progress(TrainProgress(state.global_step, state.max_steps, self.last_loss))
