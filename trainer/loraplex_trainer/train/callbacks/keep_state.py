"""Puts our own state beside the trainer's in each checkpoint; it is the file that makes a checkpoint whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from loraplex_trainer.train.checkpoints import write_kept_state


class KeepStateCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """state  called after each checkpoint was written; what a resumed run needs."""

    def __init__(self, state: Callable[[], dict[str, Any]]) -> None:
        self._state = state

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called last of all when a checkpoint is saved."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_kept_state(folder, {"epoch": state.epoch, "step": state.global_step, **self._state()})
