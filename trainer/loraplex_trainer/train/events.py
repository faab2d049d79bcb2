"""What a running training tells whoever watches it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

EndStatus = Literal["finished", "paused", "cancelled"]


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins; a run without stages has one, called "domain"."""

    stage: str
    index: int  # from 0
    num_stages: int
    num_rows: int
    max_epochs: int


@dataclass(frozen=True, slots=True)
class Advanced:
    """An optimizer step was made, or, before the first, the steps begin."""

    step: int
    num_steps: int  # of all stages, if none ends early


@dataclass(frozen=True, slots=True)
class Step:
    """A look at the optimizer, at most every ten steps. Steps count from 1 through all stages."""

    step: int
    num_steps: int  # of all stages, if none ends early
    loss: float  # mean since the last look
    tokens_per_s: float
    eta_s: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Validation after an epoch; epoch 0 is before the first step. Losses are natural logarithms per token."""

    epoch: float
    eval_loss: float
    perplexity: float
    gap: float  # validation loss minus the loss on as many training rows, both without dropout


@dataclass(frozen=True, slots=True)
class Sampled:
    """The typical questions were answered."""

    epoch: float
    num_answers: int
    num_bad: int


@dataclass(frozen=True, slots=True)
class OverfitAlarm:
    """Validation falls behind training; `patch` is a change of the recipe that helps."""

    epoch: float
    ratio: float
    patch: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Paused:
    """Too many bad answers two epochs in a row; resuming goes on from here."""

    epoch: float
    why: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The run has ended."""

    status: EndStatus
    run_folder: Path


@dataclass(frozen=True, slots=True)
class Log:
    """A line for people."""

    message: str


TrainEvent = StageStarted | Advanced | Step | Evaluated | Sampled | OverfitAlarm | Paused | Finished | Log


def event_document(event: TrainEvent) -> dict[str, Any]:
    """The event as JSON values, its kind under `event`."""
    fields = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(event).items()}
    return {"event": type(event).__name__, **fields}
