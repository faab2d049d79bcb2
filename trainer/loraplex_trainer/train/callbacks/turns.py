"""Gives way to the server between optimizer steps, and ends a run that is to be cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class RunCancelled(Exception):
    """Somebody asked the run to stop. What the last epoch saved stays."""


class TurnsCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """After every optimizer step: waits for its turn, then asks whether to stop."""

    def __init__(self, wait_turn: Callable[[], None] | None, should_stop: Callable[[], bool] | None) -> None:
        self._wait_turn = wait_turn
        self._should_stop = should_stop

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Raises RunCancelled. Stopping by the trainer's own flag would evaluate and save an unfinished epoch."""
        if self._should_stop is not None and self._should_stop():
            raise RunCancelled
        if self._wait_turn is not None:
            self._wait_turn()
