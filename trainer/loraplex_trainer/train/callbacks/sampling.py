"""After every epoch: the typical questions, and the pause on bad answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from loraplex_trainer.train.events import Paused, Sampled, TrainEvent
from loraplex_trainer.train.samples import BadStreak, Sample


class SamplingCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Asks, keeps the answers, and pauses the run after two bad epochs.

    ask   called with the epoch; the answers
    keep  called with (epoch, step of the stage, answers)
    """

    def __init__(
        self,
        ask: Callable[[float], Sequence[Sample]],
        keep: Callable[[float, int, Sequence[Sample]], None],
        streak: BadStreak,
        emit: Callable[[TrainEvent], None],
    ) -> None:
        self.streak = streak
        self.pause: Paused | None = None
        self._ask = ask
        self._keep = keep
        self._emit = emit

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluation and checkpoint of the epoch follow, whatever is decided here."""
        epoch = float(state.epoch)
        samples = self._ask(epoch)
        if not samples:
            return
        self._keep(epoch, state.global_step, samples)
        bad = [sample for sample in samples if sample.problems]
        self._emit(Sampled(epoch, len(samples), len(bad)))
        if self.streak.see(samples):
            kinds = sorted({name for sample in bad for name in sample.problems})
            self.pause = Paused(
                epoch,
                f"{len(bad)} of {len(samples)} sampled answers are bad ({', '.join(kinds)}) for the second epoch in a "
                "row: look at samples.jsonl and at the data, then go on with --resume",
            )
            self._emit(self.pause)
            control.should_training_stop = True
