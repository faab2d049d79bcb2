"""What calls about training jobs return: plain frozen records, no protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class TrainingJobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"  # too many sample answers were bad: look, then resume or cancel it
    SUCCEEDED = "succeeded"  # its adapter is registered
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  # a newer server's state

    @property
    def is_unfinished(self) -> bool:
        """It waits or runs: something will happen by itself."""
        return self in (TrainingJobState.QUEUED, TrainingJobState.RUNNING)


class TrainingVerdict(StrEnum):
    """What the gate said of the adapter."""

    NONE = "none"  # it has not been asked
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    UNKNOWN = "unknown"  # a newer server's verdict


class TrainingEventKind(StrEnum):
    """What kind of thing an event tells."""

    STATE = "state"
    STAGE = "stage"
    STEP = "step"
    METRICS = "metrics"
    LOG = "log"
    WARNING = "warning"
    UNKNOWN = "unknown"  # a newer server's kind


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far a job is."""

    stage: str  # empty: it has not begun
    step: int
    num_steps: int  # 0: not known
    loss: float | None
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class TrainingFailure:
    """Why a job failed."""

    reason: str
    message: str
    resumable: bool


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training on the server, and what came of it."""

    name: str  # tenants/TENANT/trainingJobs/JOB; empty where it was only checked
    adapter: str  # resource name of the adapter that comes of it
    alias: str
    recipe: str  # empty in lists
    data_folder: str
    device: str
    state: TrainingJobState
    progress: TrainingProgress
    digest: str  # of the registered version; empty before
    verdict: TrainingVerdict
    failure: TrainingFailure | None
    attempts: int
    etag: str
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    update_time: datetime


@dataclass(frozen=True, slots=True)
class TrainingEvent:
    """One thing that happened in a job."""

    sequence: int
    time: datetime
    kind: TrainingEventKind
    stage: str
    state: TrainingJobState | None  # of a state event
    step: int
    num_steps: int
    values: Mapping[str, float]
    text: str
