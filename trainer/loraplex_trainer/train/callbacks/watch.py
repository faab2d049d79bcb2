"""After every epoch: the typical questions, and what the evaluation means for the stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from loraplex_trainer.train.events import Paused, TrainEvent
from loraplex_trainer.train.observer import Losses, Observer


class WatchCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Ends the stage when validation does not get better, and pauses it on bad answers.

    steps_before  optimizer steps of the stages before this one
    """

    def __init__(self, observer: Observer, steps_before: int, emit: Callable[[TrainEvent], None]) -> None:
        self.has_ended = False  # the stage, before its last epoch
        self.pause: Paused | None = None
        self._observer = observer
        self._steps_before = steps_before
        self._emit = emit

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Evaluation and checkpoint of the epoch follow, whatever is decided here."""
        why = self._observer.ask(model, float(state.epoch), self._steps_before + state.global_step)
        if why is not None:
            self.pause = Paused(float(state.epoch), f"{why}, then go on with --resume")
            self._emit(self.pause)
            control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Called before the checkpoint of the epoch is saved, so that it holds what is decided here."""
        losses = Losses(metrics["eval_loss"], metrics["eval_train_loss"])
        if self._observer.judge(losses, float(state.epoch)):
            self.has_ended = control.should_training_stop = True
