"""Training as a service: what a caller can ask for."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from loraplex_adapters.errors import LoraplexError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import Once
from loraplex_adapters.releases import OnExisting
from loraplex_server.admission.sources import confined
from loraplex_server.errors import TrainingJobElsewhereError
from loraplex_server.metrics import Metrics
from loraplex_server.releases.registration import Registrar, RegistrationRequest
from loraplex_server.training import jobs
from loraplex_server.training.checker import RecipeChecker
from loraplex_server.training.event_log import EventDraft, EventLog, JobEvent
from loraplex_server.training.job_book import JobBook
from loraplex_server.training.job_folder import JobFolders
from loraplex_server.training.job_store import JobStore
from loraplex_server.training.jobs import JobName, TrainingJob
from loraplex_server.training.messages import Checked, CheckOrder
from loraplex_server.training.settings import ServedBase, TrainingLimits
from loraplex_server.training.supervisor import FindNeighbours, JobSupervisor
from loraplex_server.training.uploaded_files import check_files, check_recipe_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What a caller wants trained."""

    tenant: str
    recipe: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    data_folder: str = ""
    alias: str = jobs.CANDIDATE
    validate_only: bool = False
    once: Once | None = None


class TrainingJobs:
    """Owned by the event loop."""

    def __init__(
        self,
        store: JobStore,
        folders: JobFolders,
        base: ServedBase,
        limits: TrainingLimits,
        registrar: Registrar,
        neighbours: FindNeighbours,
        queue_depth: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._folders = folders
        self._base = base
        self._limits = limits
        self._checker = RecipeChecker()
        register = partial(_register, registrar)
        self._book = JobBook(store, folders)
        self._supervisor = JobSupervisor(
            store, folders, self._book, base, limits, register, neighbours, queue_depth, metrics
        )

    async def start(self) -> None:
        """Find the jobs of before again, and go on with them. Raises StorageError."""
        await self._supervisor.start()

    async def close(self) -> None:
        """Kill what runs; the next start goes on with it."""
        await self._supervisor.close()
        await asyncio.to_thread(self._store.close)

    async def create(self, new: NewJob) -> TrainingJob:
        """Check, keep and queue a job.

        Raises InvalidRequestError with every wrong field, QuotaExceededError, UploadTooLargeError, TrainerMissingError,
        RequestIdReusedError, StorageError.
        """
        answered = await asyncio.to_thread(self._store.answer_to, new.tenant, new.once)
        if answered is not None:
            return answered
        check_recipe_size(new.recipe)
        check_files(new.files, self._limits.max_upload_bytes)
        await asyncio.to_thread(self._store.check_quota, new.tenant)
        data_folder = ""
        if new.data_folder:
            found = await asyncio.to_thread(confined, new.data_folder, self._limits.roots, "data_folder")
            data_folder = str(found)
        received = await asyncio.to_thread(self._folders.receive, new.files)
        try:
            checked = await self._check(new, data_folder, received)
            job = self._made(new, data_folder, checked)
            if new.validate_only:
                return job
            return await self._queue(job, received, new.once)
        finally:
            await asyncio.to_thread(self._folders.discard, received)

    async def get(self, name: JobName) -> TrainingJob:
        """Raises TrainingJobNotFoundError."""
        return self._book.progress_of(await asyncio.to_thread(self._store.get, name))

    async def list_page(self, page_size: int, before: int | None, tenant: str | None) -> list[TrainingJob]:
        """As JobStore.list_page, with the newest progress."""
        found = await asyncio.to_thread(self._store.list_page, page_size, before, tenant)
        return [self._book.progress_of(job) for job in found]

    async def cancel(self, name: JobName, etag: str) -> TrainingJob:
        """Raises TrainingJobNotFoundError, TrainingJobStateError, EtagMismatchError."""

        def decide(before: TrainingJob, now: datetime) -> TrainingJob:
            jobs.check_etag(before, etag)
            return jobs.cancelled(before, now)

        job = await self._book.change(name, decide)
        self._supervisor.cancel(name)  # if it runs here
        self._supervisor.queue_changed()
        return self._book.progress_of(job)

    async def resume(self, name: JobName, etag: str) -> TrainingJob:
        """Raises TrainingJobNotFoundError, TrainingJobStateError, EtagMismatchError, TrainingJobElsewhereError."""

        def decide(before: TrainingJob, now: datetime) -> TrainingJob:
            jobs.check_etag(before, etag)
            self._check_here(before)
            return jobs.resumed(before)

        job = await self._book.change(name, decide)
        self._supervisor.queue_changed()
        return self._book.progress_of(job)

    async def events(self, name: JobName, after: int) -> AsyncIterator[JobEvent]:
        """What happened in a job, and what happens until it has ended.

        Raises TrainingJobNotFoundError, TrainingJobElsewhereError, EventsExpiredError, InvalidRequestError.
        """
        job = await asyncio.to_thread(self._store.get, name)
        self._check_here(job)
        events = await self._book.events(name)
        async for event in events.follow(after):
            yield event

    async def _check(self, new: NewJob, data_folder: str, received: Path) -> Checked:
        order = CheckOrder(
            recipe=new.recipe,
            tenant=new.tenant,
            folder=data_folder or str(received),
            base_id=self._base.id,
            base_fingerprint=self._base.fingerprint,
            max_rank=self._base.max_rank,
        )
        return await self._checker.check(order, received)

    def _made(self, new: NewJob, data_folder: str, checked: Checked) -> TrainingJob:
        now = self._store.now()
        return TrainingJob(
            name=JobName(new.tenant, secrets.token_hex(8)),
            adapter=AdapterName.parse(f"{new.tenant}/{checked.adapter}", "recipe.name"),
            alias=new.alias,
            owner=self._folders.owner,
            recipe=new.recipe,
            data_folder=data_folder,
            device=self._base.device if checked.device == "auto" else checked.device,
            created_at=now,
            updated_at=now,
        )

    async def _queue(self, job: TrainingJob, received: Path, once: Once | None) -> TrainingJob:
        """First the folder, then the row: a row without a folder would be a lost job."""
        folder = await asyncio.to_thread(self._folders.keep, received, job.name.job)
        try:
            # Before the row is there: from then on the job may begin, and tell of it.
            await (await EventLog.open(folder.events)).append(EventDraft(kind="state", state=job.state.value))
            stored = await asyncio.to_thread(self._store.create, job, once)
        except LoraplexError:
            await asyncio.to_thread(self._folders.discard, folder.path)
            raise
        if stored.name != job.name:  # an equal request was quicker
            await asyncio.to_thread(self._folders.discard, folder.path)
            return stored
        self._supervisor.queue_changed()
        log.info("training job queued", extra={"job": str(job.name), "adapter": str(job.adapter)})
        return stored

    def _check_here(self, job: TrainingJob) -> None:
        if job.owner != self._folders.owner:
            raise TrainingJobElsewhereError(
                f"training job {job.name} belongs to another server of this registry; ask that one"
            )


async def _register(registrar: Registrar, job: TrainingJob, folders: JobFolders) -> str:
    """The way of every package: proved, asked golden prompts, and only then entered. Repeated, it changes nothing."""
    request = RegistrationRequest(
        name=job.adapter,
        on_existing=OnExisting.ADD_VERSION,
        alias=job.alias,
        source=f"training job {job.name.job}",
    )
    registered = await registrar.register(request, folders.of(job.name.job).package)
    return registered.version.digest
