"""Runs the jobs of this server, one at a time per device, and keeps what becomes of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from loraplex_adapters.errors import LoraplexError, StorageError
from loraplex_server.errors import EngineError, TrainingJobNotFoundError
from loraplex_server.metrics import Metrics
from loraplex_server.training import jobs
from loraplex_server.training.attempt import Attempt
from loraplex_server.training.event_log import EventDraft
from loraplex_server.training.event_recorder import EventRecorder
from loraplex_server.training.job_book import JobBook
from loraplex_server.training.job_folder import JobFolders
from loraplex_server.training.job_store import Decide, JobStore
from loraplex_server.training.jobs import Failure, JobName, JobState, Progress, TrainingJob, Verdict
from loraplex_server.training.messages import MAX_TEXT, Outcome, RunOrder
from loraplex_server.training.settings import ServedBase, TrainingLimits

log = logging.getLogger(__name__)

_SAVE_PROGRESS_EVERY_S = 5.0
_LOOK_FOR_CANCEL_EVERY_S = 2.0  # for what was asked of another server
_REGISTER_ATTEMPTS = 6
_REGISTER_PAUSE_S = 5.0
_AFTER_FAULT_S = 5.0
_LOST = Failure("JOB_LOST", "the job's folder is gone from the server's disk; create the job anew", False)

FindNeighbours = Callable[[TrainingJob, Path], Awaitable[tuple[str, ...]]]
"""(job, folder for them) -> folders of other adapters' packages."""
Register = Callable[[TrainingJob, "JobFolders"], Awaitable[str]]
"""Makes the package of a job that passed the gate a version; returns its digest. Raises LoraplexError."""


@dataclass(slots=True)
class _Running:
    """A job that has its device."""

    task: asyncio.Task[None]
    attempt: Attempt | None = None


class JobSupervisor:
    """Owned by the event loop."""

    def __init__(
        self,
        store: JobStore,
        folders: JobFolders,
        book: JobBook,
        base: ServedBase,
        limits: TrainingLimits,
        register: Register,
        neighbours: FindNeighbours,
        queue_depth: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._folders = folders
        self._book = book
        self._base = base
        self._limits = limits
        self._register = register
        self._neighbours = neighbours
        self._queue_depth = queue_depth
        self._metrics = metrics
        self._running: dict[JobName, _Running] = {}
        self._devices: set[str] = set()  # that a job has
        self._changed = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find the jobs of before again, and begin with what waits. Raises StorageError."""
        for job in await self._owned(JobState.RUNNING):
            folder = self._folders.of(job.name.job)
            if not folder.exists():
                await self._book.change(job.name, partial(_failed, failure=_LOST, verdict=None))
            elif await asyncio.to_thread(folder.outcome) is None:
                await self._book.change(job.name, jobs.interrupted)
            else:  # it ended unseen
                self._begin(job, self._conclude_found(job))
        self._main = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Kill what runs; the next start finds it again."""
        tasks = [running.task for running in self._running.values()]
        if self._main is not None:
            tasks.append(self._main)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._book.abandon()

    def queue_changed(self) -> None:
        """A job was queued, or one that waited was cancelled."""
        self._changed.set()

    def cancel(self, name: JobName) -> None:
        """End a job that runs here."""
        running = self._running.get(name)
        if running is not None and running.attempt is not None:
            running.attempt.cancel()

    async def _run(self) -> None:
        while True:
            try:
                await self._begin_next()
            except StorageError:  # logged where it happened
                await asyncio.sleep(_AFTER_FAULT_S)
                continue
            await self._changed.wait()
            self._changed.clear()

    async def _begin_next(self) -> None:
        """Give every free device the job that has waited longest for it."""
        waiting = [job for job in await self._owned(JobState.QUEUED) if job.name not in self._running]
        for job in waiting:
            if job.device not in self._devices:
                self._begin(job, self._do(job))
        num_waiting = sum(job.name not in self._running for job in waiting)
        self._metrics.training_queue(num_waiting, len(self._running))

    def _begin(self, job: TrainingJob, course: Awaitable[None]) -> None:
        self._devices.add(job.device)
        self._running[job.name] = _Running(asyncio.create_task(self._guarded(job, course)))

    async def _guarded(self, job: TrainingJob, course: Awaitable[None]) -> None:
        try:
            await course
        except LoraplexError as error:  # the database, the disk: the job stays as it is in its row
            log.error(
                "a training job is left for later", extra={"job": str(job.name), "reason": error.reason}
            )
            await asyncio.sleep(_AFTER_FAULT_S)
            await self._put_back(job)
        except Exception:
            log.exception("unexpected error around a training job")
            await self._put_back(job)
        finally:
            self._running.pop(job.name, None)
            self._book.recorders.pop(job.name, None)
            self._devices.discard(job.device)
            self._changed.set()

    async def _put_back(self, job: TrainingJob) -> None:
        try:
            await self._book.change(job.name, jobs.interrupted)
        except LoraplexError:
            log.error("a training job waits for the next start", extra={"job": str(job.name)})

    async def _do(self, queued: TrainingJob) -> None:
        job = await self._book.change(queued.name, jobs.started)
        if job.state is not JobState.RUNNING:
            return  # cancelled meanwhile
        recorder = self._book.recorders[job.name] = EventRecorder(
            await self._book.events(job.name), self._metrics
        )
        attempt = Attempt(self._folders.of(job.name.job), self._limits, self._queue_depth, recorder.take)
        self._running[job.name].attempt = attempt
        saving = asyncio.create_task(self._keep_saved(job.name, recorder, attempt))
        try:
            outcome = await attempt.run(await self._order(job))
        finally:
            saving.cancel()
        await self._save(job.name, recorder)
        await self._conclude(job, outcome)

    async def _conclude_found(self, job: TrainingJob) -> None:
        """A job whose process ended while no server looked."""
        outcome = await asyncio.to_thread(self._folders.of(job.name.job).outcome)
        assert outcome is not None
        await self._conclude(job, outcome)

    async def _conclude(self, job: TrainingJob, outcome: Outcome) -> None:
        verdict = Verdict(outcome.verdict) if outcome.verdict else None
        decide: Decide
        match outcome.status:
            case "packaged":
                decide = await self._registered(job)
            case "paused":
                decide = partial(_ended, state=JobState.PAUSED)
            case "cancelled":
                decide = partial(_ended, state=JobState.CANCELLED)
            case _:
                message = outcome.message.replace("\0", " ")[:MAX_TEXT]  # PostgreSQL takes no NUL
                failure = Failure(outcome.reason[:64] or "UNKNOWN", message, outcome.is_resumable)
                decide = partial(_failed, failure=failure, verdict=verdict)
        after = await self._book.change(job.name, decide, outcome.message)
        self._metrics.training_ended(after.state.value)
        if not after.is_resumable:
            await asyncio.to_thread(self._folders.of(job.name.job).drop_scratch)
        log.info("training job ended", extra={"job": str(job.name), "state": after.state.value})

    async def _registered(self, job: TrainingJob) -> Decide:
        """What registering its package makes of a job."""
        recorder = self._book.recorders.get(job.name)
        if recorder is not None:
            recorder.progress = Progress("register")
        events = await self._book.events(job.name)
        await events.append(EventDraft(kind="stage", stage="register"))
        for attempt in range(1, _REGISTER_ATTEMPTS + 1):
            try:
                digest = await self._register(job, self._folders)
            except (EngineError, StorageError) as error:
                if attempt == _REGISTER_ATTEMPTS:
                    return partial(_failed, failure=_refused(error, True), verdict=Verdict.PASS)
                await asyncio.sleep(_REGISTER_PAUSE_S)
            except LoraplexError as error:
                return partial(_failed, failure=_refused(error, True), verdict=Verdict.PASS)
            else:
                return lambda before, now: jobs.succeeded(before, digest, now)
        raise AssertionError("the last attempt returns")

    async def _keep_saved(self, name: JobName, recorder: EventRecorder, attempt: Attempt) -> None:
        """Progress into the row from time to time; and what another server was asked for, out of it."""
        saved_s = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_FOR_CANCEL_EVERY_S)
            try:
                if time.monotonic() - saved_s >= _SAVE_PROGRESS_EVERY_S:
                    saved_s = time.monotonic()
                    await self._save(name, recorder)
                job = await asyncio.to_thread(self._store.get, name)
            except (StorageError, TrainingJobNotFoundError):
                continue
            if job.is_cancel_requested:
                attempt.cancel()

    async def _save(self, name: JobName, recorder: EventRecorder) -> None:
        await asyncio.to_thread(self._store.note_progress, name, recorder.progress)

    async def _owned(self, state: JobState) -> list[TrainingJob]:
        return await asyncio.to_thread(self._store.owned, self._folders.owner, [state])

    async def _order(self, job: TrainingJob) -> RunOrder:
        folder = self._folders.of(job.name.job)
        return RunOrder(
            recipe=job.recipe,
            tenant=job.name.tenant,
            data_folder=job.data_folder or str(folder.data),
            run_folder=str(folder.run),
            base_folder=str(self._base.folder),
            precision=self._base.precision,
            max_rank=self._base.max_rank,
            is_resumed=job.attempts > 1,
            max_waiting=self._limits.max_waiting,
            max_pause_s=self._limits.max_pause_s,
            other_packages=await self._neighbours(job, folder.neighbours),
        )


def _ended(before: TrainingJob, now: datetime, *, state: JobState) -> TrainingJob:
    return jobs.ended(before, state, now)


def _failed(before: TrainingJob, now: datetime, *, failure: Failure, verdict: Verdict | None) -> TrainingJob:
    return jobs.failed(before, failure, now, verdict)


def _refused(error: LoraplexError, is_resumable: bool) -> Failure:
    return Failure(error.reason, f"the adapter passed the gate and was not registered: {error}", is_resumable)
