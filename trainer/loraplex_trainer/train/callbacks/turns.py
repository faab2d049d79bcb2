"""Gives way to the server between optimizer steps, and ends a run that is to be cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class RunCancelled(Exception):
    """Somebody asked the run to stop. What was saved stays."""


class TurnsCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """After every optimizer step: waits for its turn, then asks whether to stop, which saves a checkpoint.

    Stands behind whoever makes a checkpoint whole.
    """

    def __init__(self, wait_turn: Callable[[], None] | None, should_stop: Callable[[], bool] | None) -> None:
        self._wait_turn = wait_turn
        self._should_stop = should_stop
        self._is_stopping = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stopping by the trainer's own flag would evaluate an unfinished epoch; a finished one is evaluated."""
        if self._should_stop is not None and self._should_stop():
            self._is_stopping = True
            if state.global_step % round(state.max_steps / args.num_train_epochs):
                control.should_log = True  # a loss that is no number is found before it is saved
                control.should_save = True
        elif self._wait_turn is not None:
            self._wait_turn()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises RunCancelled."""
        if self._is_stopping:
            raise RunCancelled
