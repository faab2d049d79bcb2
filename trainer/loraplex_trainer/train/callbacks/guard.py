"""Ends a training whose numbers are no longer numbers, before they are saved."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

from loraplex_trainer.errors import TrainingDivergedError

_WATCHED = ("loss", "grad_norm", "eval_loss")


class GuardCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Raises TrainingDivergedError at the first loss or gradient norm that is not finite."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Called with each logged dictionary, that of an evaluation too."""
        for name in _WATCHED:
            if not math.isfinite((logs or {}).get(name, 0.0)):
                raise TrainingDivergedError(
                    f"{name} is not finite at step {state.global_step}; lower train.learning_rate, or look for "
                    "rows that are far longer than the others"
                )
