"""After every evaluation: patience, and the overfit alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from loraplex_trainer.train.events import OverfitAlarm, TrainEvent
from loraplex_trainer.train.overfit import OverfitWatch
from loraplex_trainer.train.patience import Patience


class WatchCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Ends the stage when validation does not get better, or where an alarm is to end it.

    on_alarm  called with (epoch, ratio, epoch of the best validation); the alarm's event
    """

    def __init__(
        self,
        patience: Patience,
        overfit: OverfitWatch,
        emit: Callable[[TrainEvent], None],
        on_alarm: Callable[[float, float, float], OverfitAlarm],
        *,
        stops_on_alarm: bool,
    ) -> None:
        self.patience = patience
        self.overfit = overfit
        self.has_ended = False  # the stage, by a decision of this callback
        self.alarms: list[OverfitAlarm] = []
        self._emit = emit
        self._on_alarm = on_alarm
        self._stops_on_alarm = stops_on_alarm

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Called before the checkpoint of the epoch is saved, so that it holds what is decided here."""
        epoch, loss = float(state.epoch), metrics["eval_loss"]
        self.patience.see(loss, epoch)
        if self.patience.is_over(epoch):
            self.has_ended = control.should_training_stop = True
        if self.overfit.see(loss, metrics["eval_train_loss"]):
            alarm = self._on_alarm(epoch, loss / metrics["eval_train_loss"], self.patience.best_epoch)
            self.alarms.append(alarm)
            self._emit(alarm)
            if self._stops_on_alarm:
                self.has_ended = control.should_training_stop = True
