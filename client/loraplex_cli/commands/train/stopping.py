"""Ctrl-C during a training: the first one lets a checkpoint be written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class OrderlyStop:
    """Whether the user asked a training to stop."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.is_training = False  # steps are made, so that somebody asks
        self._is_asked = False
        self._note = note

    def is_asked(self) -> bool:
        return self._is_asked

    @contextmanager
    def heeding_interrupts(self) -> Iterator[None]:
        """Within, Ctrl-C during the steps is taken note of. A second one, or one at another time, ends at once."""
        if threading.current_thread() is not threading.main_thread():  # only it may have handlers
            yield
            return
        before = signal.signal(signal.SIGINT, self._interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._is_asked or not self.is_training:
            raise KeyboardInterrupt
        self._is_asked = True
        self._note("stopping after this step, with a checkpoint; Ctrl-C again stops at once")


def how_to_go_on(run_folder: Path) -> str:
    """What `--resume` would do with a run that was cancelled."""
    from loraplex_trainer.train.checkpoints import resume_step
    from loraplex_trainer.train.run_folder import RunFolder

    run = RunFolder(run_folder)
    if not run.is_begun:
        return "cancelled before the run began"
    step = resume_step(run.checkpoints)
    if step is None:
        return "cancelled; no checkpoint was written yet, so --resume starts anew"
    return f"cancelled; --resume goes on from step {step}"
