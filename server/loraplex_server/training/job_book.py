"""Jobs as callers see them: rows and events that belong together, with the newest progress of what runs here."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime

from loraplex_server.training.event_log import EventDraft, EventLog
from loraplex_server.training.event_recorder import EventRecorder
from loraplex_server.training.job_folder import JobFolders
from loraplex_server.training.job_store import Decide, JobStore
from loraplex_server.training.jobs import JobName, JobState, TrainingJob


class JobBook:
    """Owned by the event loop."""

    def __init__(self, store: JobStore, folders: JobFolders) -> None:
        self._store = store
        self._folders = folders
        self._logs: dict[JobName, EventLog] = {}  # of jobs that are not over
        self._opening = asyncio.Lock()
        self._changing: list[JobName] = []  # whose state changes and is not told yet
        self.recorders: dict[JobName, EventRecorder] = {}  # of jobs that run here

    def abandon(self) -> None:
        """The server stops: whoever follows a job is told."""
        for events in self._logs.values():
            events.abandon()

    def progress_of(self, job: TrainingJob) -> TrainingJob:
        """The job with what is newer than its row."""
        recorder = self.recorders.get(job.name)
        return job if recorder is None else replace(job, progress=recorder.progress)

    async def events(self, name: JobName) -> EventLog:
        """What happened in a job of this server. Raises StorageError, TrainingJobNotFoundError."""
        async with self._opening:
            events = self._logs.get(name)
            if events is None:
                events = await EventLog.open(self._folders.of(name.job).events)
                # Only now: a job that ended while its file was read has told so already, or is about to.
                job = await asyncio.to_thread(self._store.get, name)
                if job.state.is_unfinished or name in self._changing:
                    events.begin()
                    self._logs[name] = events
            return events

    async def change(self, name: JobName, decide: Decide, text: str = "") -> TrainingJob:
        """Change a job's row, and tell who follows it here. Raises what `JobStore.change` does."""
        was: list[JobState] = []
        recorder = self.recorders.get(name)

        def decide_and_note(before: TrainingJob, now: datetime) -> TrainingJob:
            was[:] = [before.state]
            after = decide(before, now)
            if after is before or recorder is None:
                return after
            return replace(after, progress=recorder.progress)

        self._changing.append(name)
        try:
            job = await asyncio.to_thread(self._store.change, name, decide_and_note)
            if was != [job.state] and job.owner == self._folders.owner:
                await self._tell_state(job, job.failure.message if job.failure else text)
        finally:
            self._changing.remove(name)
        return job

    async def _tell_state(self, job: TrainingJob, text: str = "") -> None:
        """Put the job's state into its events."""
        events = await self.events(job.name)
        await events.append(EventDraft(kind="state", state=job.state.value, text=text))
        if not job.state.is_unfinished:
            events.end()
            self._logs.pop(job.name, None)
