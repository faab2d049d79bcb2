"""Training jobs in the registry's database, so that they survive a restart and every server can show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from loraplex_adapters.errors import QuotaExceededError, RequestIdReusedError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import Once
from loraplex_adapters.registry_database import from_us, open_engine, reading, to_us, writing
from loraplex_adapters.registry_journal import REQUEST_IDS_KEPT
from loraplex_adapters.registry_schema import registry_meta, training_jobs
from loraplex_server.errors import TrainingJobNotFoundError
from loraplex_server.training.jobs import Failure, JobName, JobState, Progress, TrainingJob, Verdict

Decide = Callable[[TrainingJob, datetime], TrainingJob]
"""(job as it is, now) -> job as it shall be; the same object for no change."""

_UNFINISHED = [state.value for state in JobState if state.is_unfinished]


class JobStore:
    """Rows of `training_jobs`. Calls block on the database; any thread may make them. Each raises StorageError."""

    def __init__(
        self,
        url: str,
        max_unfinished_per_tenant: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """The database must have been brought up to date; see `AdapterRegistry`."""
        self._engine = open_engine(url)
        self._max_unfinished = max_unfinished_per_tenant
        self._clock = clock

    def close(self) -> None:
        """The store may not be used afterwards."""
        self._engine.dispose()

    def now(self) -> datetime:
        """The time that changes are stamped with."""
        return self._clock()

    def answer_to(self, tenant: str, once: Once | None) -> TrainingJob | None:
        """The job that this very request made, within a day; None if it is new. Raises RequestIdReusedError."""
        with reading(self._engine) as connection:
            return self._answer_to(connection, tenant, once)

    def create(self, job: TrainingJob, once: Once | None) -> TrainingJob:
        """Keep a new job; a repetition of `once` returns the first one. Raises QuotaExceededError,
        RequestIdReusedError.
        """
        with writing(self._engine) as connection:
            # Creations come one after another, on all servers: two must not both take the last place.
            connection.execute(select(registry_meta).where(registry_meta.c.id == 1).with_for_update())
            if (answered := self._answer_to(connection, job.name.tenant, once)) is not None:
                return answered
            self._check_quota(connection, job.name.tenant)
            values = {
                **_changing(job),
                "tenant": job.name.tenant,
                "job": job.name.job,
                "adapter": job.adapter.adapter,
                "alias": job.alias,
                "owner": job.owner,
                "recipe": job.recipe,
                "data_folder": job.data_folder,
                "device": job.device,
                "created_at_us": to_us(job.created_at),
                "request_id": once.request_id if once else None,
                "request_content": once.content if once else None,
            }
            number = connection.execute(insert(training_jobs).values(values)).inserted_primary_key
            assert number is not None
            return replace(job, number=int(number[0]))

    def check_quota(self, tenant: str) -> None:
        """Raises QuotaExceededError where the tenant may have no further job now."""
        with reading(self._engine) as connection:
            self._check_quota(connection, tenant)

    def get(self, name: JobName) -> TrainingJob:
        """Raises TrainingJobNotFoundError."""
        with reading(self._engine) as connection:
            return _load(connection, name)

    def list_page(
        self, page_size: int, before: int | None = None, tenant: str | None = None
    ) -> list[TrainingJob]:
        """Up to `page_size` jobs, newest first, beginning below the number `before`; fewer: it was the last page."""
        query = select(training_jobs).order_by(training_jobs.c.id.desc()).limit(page_size)
        if tenant is not None:
            query = query.where(training_jobs.c.tenant == tenant)
        if before is not None:
            query = query.where(training_jobs.c.id < before)
        with reading(self._engine) as connection:
            return [_job(row) for row in connection.execute(query)]

    def owned(self, owner: str, states: Iterable[JobState]) -> list[TrainingJob]:
        """A server's jobs in any of these states, oldest first."""
        query = (
            select(training_jobs)
            .where(training_jobs.c.owner == owner)
            .where(training_jobs.c.state.in_([state.value for state in states]))
            .order_by(training_jobs.c.id)
        )
        with reading(self._engine) as connection:
            return [_job(row) for row in connection.execute(query)]

    def change(self, name: JobName, decide: Decide) -> TrainingJob:
        """Read, decide and write in one transaction. Raises TrainingJobNotFoundError, and what `decide` raises."""
        with writing(self._engine) as connection:
            before = _load(connection, name, for_update=True)
            now = self._clock()
            after = decide(before, now)
            if after is before:
                return before
            after = replace(after, revision=before.revision + 1, updated_at=now)
            self._write(connection, name, _changing(after))
            return after

    def note_progress(self, name: JobName, progress: Progress) -> None:
        """Keep how far a job is. That is no change: its etag stays."""
        with writing(self._engine) as connection:
            self._write(connection, name, {**_progress(progress), "updated_at_us": to_us(self._clock())})

    def _write(self, connection: Connection, name: JobName, values: dict[str, Any]) -> None:
        is_it = (training_jobs.c.tenant == name.tenant) & (training_jobs.c.job == name.job)
        connection.execute(update(training_jobs).where(is_it).values(values))

    def _answer_to(self, connection: Connection, tenant: str, once: Once | None) -> TrainingJob | None:
        if once is None:
            return None
        is_it = (training_jobs.c.tenant == tenant) & (training_jobs.c.request_id == once.request_id)
        youngest = select(training_jobs).where(is_it)
        row = connection.execute(youngest.order_by(training_jobs.c.id.desc()).limit(1)).one_or_none()
        if row is None or row.created_at_us <= to_us(self._clock() - REQUEST_IDS_KEPT):
            return None
        if row.request_content != once.content:
            raise RequestIdReusedError(
                "the request_id was used within a day for a request of other content; choose a new one"
            )
        return _job(row)

    def _check_quota(self, connection: Connection, tenant: str) -> None:
        is_unfinished = (training_jobs.c.tenant == tenant) & training_jobs.c.state.in_(_UNFINISHED)
        query = select(func.count()).select_from(training_jobs).where(is_unfinished)
        if connection.execute(query).scalar_one() >= self._max_unfinished:
            raise QuotaExceededError(
                f"has {self._max_unfinished} training jobs that wait or run, as many as it may; wait for one or "
                "cancel it",
                f"tenants/{tenant}",
            )


def _load(connection: Connection, name: JobName, *, for_update: bool = False) -> TrainingJob:
    query = select(training_jobs).where(
        (training_jobs.c.tenant == name.tenant) & (training_jobs.c.job == name.job)
    )
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    if row is None:
        raise TrainingJobNotFoundError(f"tenant '{name.tenant}' has no training job '{name.job}'")
    return _job(row)


def _job(row: Any) -> TrainingJob:
    failure = None
    if row.failure_reason:
        failure = Failure(row.failure_reason, row.failure_message, row.is_resumable)
    return TrainingJob(
        name=JobName(row.tenant, row.job),
        adapter=AdapterName(row.tenant, row.adapter),
        alias=row.alias,
        owner=row.owner,
        recipe=row.recipe,
        data_folder=row.data_folder,
        device=row.device,
        created_at=from_us(row.created_at_us),
        updated_at=from_us(row.updated_at_us),
        number=row.id,
        state=JobState(row.state),
        is_cancel_requested=row.is_cancel_requested,
        progress=Progress(row.stage, row.step, row.num_steps, row.loss, row.eta_s),
        digest=row.digest,
        verdict=Verdict(row.verdict) if row.verdict else None,
        failure=failure,
        attempts=row.attempts,
        revision=row.revision,
        started_at=_moment(row.started_at_us),
        ended_at=_moment(row.ended_at_us),
    )


def _changing(job: TrainingJob) -> dict[str, Any]:
    """The columns that change in a job's life."""
    failure = job.failure or Failure("", "", False)
    return {
        **_progress(job.progress),
        "state": job.state.value,
        "is_cancel_requested": job.is_cancel_requested,
        "digest": job.digest,
        "verdict": job.verdict or "",
        "failure_reason": failure.reason,
        "failure_message": failure.message,
        "is_resumable": failure.is_resumable,
        "attempts": job.attempts,
        "revision": job.revision,
        "started_at_us": None if job.started_at is None else to_us(job.started_at),
        "ended_at_us": None if job.ended_at is None else to_us(job.ended_at),
        "updated_at_us": to_us(job.updated_at),
    }


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "stage": progress.stage,
        "step": progress.step,
        "num_steps": progress.num_steps,
        "loss": progress.loss,
        "eta_s": progress.eta_s,
    }


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else from_us(microseconds)
