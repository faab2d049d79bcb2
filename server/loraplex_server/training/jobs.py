"""What a training job is, and how it goes from one state to the next. No effects."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from loraplex_adapters.errors import EtagMismatchError, FieldViolation, InvalidRequestError
from loraplex_adapters.names import AdapterName, parse_tenant
from loraplex_server.errors import TrainingJobStateError

CANDIDATE = "candidate"
"""The alias that a job's version gets where its creator names none."""
MAX_INTERRUPTED_ATTEMPTS = 20
"""A job that was started so often when its server went down is not started again by itself: it may be the cause."""

_JOB = re.compile(r"[0-9a-f]{16}")


class JobState(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_unfinished(self) -> bool:
        """It waits or runs: something will happen by itself."""
        return self in (JobState.QUEUED, JobState.RUNNING)


class Verdict(StrEnum):
    """What the gate said."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, order=True)
class JobName:
    """Identity of a job."""

    tenant: str
    job: str  # 16 hex digits

    @classmethod
    def parse(cls, text: str, field: str = "name") -> JobName:
        """Read "tenants/T/trainingJobs/J". Raises InvalidRequestError for `field`."""
        prefix, _, job = text.partition("/trainingJobs/")
        if _JOB.fullmatch(job):
            return cls(parse_tenant(prefix, field), job)
        message = "must be tenants/TENANT/trainingJobs/JOB, as CreateTrainingJob answers it"
        raise InvalidRequestError([FieldViolation(field, message)])

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/trainingJobs/{self.job}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is."""

    stage: str = ""  # empty: not begun
    step: int = 0
    num_steps: int = 0  # 0: not known
    loss: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed."""

    reason: str  # UPPER_SNAKE
    message: str
    is_resumable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One job as the registry's database has it."""

    name: JobName
    adapter: AdapterName
    alias: str
    owner: str  # of the server whose disk has its folder
    recipe: str
    data_folder: str  # empty: its files lie in its own folder
    device: str
    created_at: datetime
    updated_at: datetime
    number: int = 0  # grows with every job; 0: not stored
    state: JobState = JobState.QUEUED
    is_cancel_requested: bool = False
    progress: Progress = field(default_factory=Progress)
    digest: str = ""
    verdict: Verdict | None = None
    failure: Failure | None = None
    attempts: int = 0
    revision: int = 1
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def is_resumable(self) -> bool:
        """Whether a call may queue it again."""
        is_failure_mended = self.failure is not None and self.failure.is_resumable
        return self.state is JobState.PAUSED or (self.state is JobState.FAILED and is_failure_mended)


def check_etag(job: TrainingJob, etag: str) -> None:
    """Raises EtagMismatchError; an empty etag is not checked."""
    if etag and etag != str(job.revision):
        raise EtagMismatchError(f"training job {job.name} was changed meanwhile; read it again")


def started(job: TrainingJob, now: datetime) -> TrainingJob:
    """Its process is about to run. One that is no longer queued stays as it is."""
    if job.state is not JobState.QUEUED:
        return job
    return replace(
        job, state=JobState.RUNNING, attempts=job.attempts + 1, started_at=now, ended_at=None, failure=None
    )


def cancelled(job: TrainingJob, now: datetime) -> TrainingJob:
    """What a call to cancel makes of it: one that runs is ended by its supervisor. Raises TrainingJobStateError."""
    match job.state:
        case JobState.CANCELLED:
            return job
        case JobState.RUNNING:
            return replace(job, is_cancel_requested=True)
        case JobState.QUEUED | JobState.PAUSED:
            return replace(job, state=JobState.CANCELLED, ended_at=now)
    if job.is_resumable:
        return replace(job, state=JobState.CANCELLED, ended_at=now, failure=None)
    raise TrainingJobStateError(f"the job has {job.state}; only one that has not ended can be cancelled")


def resumed(job: TrainingJob) -> TrainingJob:
    """What a call to resume makes of it. Raises TrainingJobStateError."""
    if job.state.is_unfinished:
        return job
    if job.is_resumable:
        return replace(
            job, state=JobState.QUEUED, failure=None, verdict=None, ended_at=None, is_cancel_requested=False
        )
    raise TrainingJobStateError(
        f"the job has {job.state} and there is nothing to go on from; create a new one"
    )


def interrupted(job: TrainingJob, now: datetime) -> TrainingJob:
    """The server went down while it ran."""
    if job.state is not JobState.RUNNING:
        return job
    if job.is_cancel_requested:
        return replace(job, state=JobState.CANCELLED, ended_at=now)
    if job.attempts < MAX_INTERRUPTED_ATTEMPTS:
        return replace(job, state=JobState.QUEUED)
    message = (
        f"the server went down {job.attempts} times while the job ran; resume it when the cause is known"
    )
    return failed(job, Failure("JOB_INTERRUPTED", message, True), now)


def failed(job: TrainingJob, failure: Failure, now: datetime, verdict: Verdict | None = None) -> TrainingJob:
    """It ended without a version."""
    return replace(job, state=JobState.FAILED, failure=failure, verdict=verdict, ended_at=now)


def ended(job: TrainingJob, state: JobState, now: datetime) -> TrainingJob:
    """It was cancelled or paused."""
    return replace(job, state=state, ended_at=now)


def succeeded(job: TrainingJob, digest: str, now: datetime) -> TrainingJob:
    """Its version is registered."""
    return replace(job, state=JobState.SUCCEEDED, digest=digest, verdict=Verdict.PASS, ended_at=now)
