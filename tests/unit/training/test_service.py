"""Training jobs without a server around them: what is found after a crash, and what registering can meet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from loraplex_adapters.errors import QuotaExceededError
from loraplex_server.errors import EngineUnavailableError, TrainingJobElsewhereError
from loraplex_server.metrics import Metrics
from loraplex_server.training import jobs
from loraplex_server.training import supervisor as supervisor_module
from loraplex_server.training.job_folder import JobFolders
from loraplex_server.training.job_store import JobStore
from loraplex_server.training.jobs import JobState, TrainingJob, started
from loraplex_server.training.messages import Outcome, encode
from loraplex_server.training.service import NewJob, TrainingJobs
from loraplex_server.training.settings import ServedBase, TrainingLimits
from tests.support.scripted_trainer import install
from tests.unit.training.conftest import migrated, new_job

DIGEST = "d" * 64


class Registrar:
    """Takes packages in, or raises what it is told."""

    def __init__(self) -> None:
        self.faults: list[Exception] = []
        self.requests: list[Any] = []

    async def register(self, request: Any, folder: Path) -> Any:
        self.requests.append(request)
        if self.faults:
            raise self.faults.pop(0)
        return type("Registered", (), {"version": type("Version", (), {"digest": DIGEST})})


async def no_neighbours(job: TrainingJob, into: Path) -> tuple[str, ...]:
    return ()


class Case:
    """A server's training, from before it has started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registrar = Registrar()
        self.folders = JobFolders(folder / "training")
        self.store = JobStore(f"sqlite:///{folder / 'registry.db'}", 8)
        self.depth = 0
        self.jobs = self.server()

    def server(self) -> TrainingJobs:
        base = ServedBase(
            id="base", folder=self.folder, fingerprint="f" * 64, precision="fp32", device="cpu", max_rank=8
        )
        limits = TrainingLimits(
            roots=(),
            max_upload_bytes=1000,
            time_s=60,
            memory_bytes=2**31,
            num_threads=1,
            max_waiting=0,
            max_pause_s=1,
        )
        registrar: Any = self.registrar
        return TrainingJobs(
            self.store, self.folders, base, limits, registrar, no_neighbours, lambda: self.depth, Metrics()
        )

    def running(self, outcome: Outcome | None = None) -> TrainingJob:
        """A job that a server which is gone was at."""
        job = self.store.create(new_job(self.store_size() + 1, owner=self.folders.owner), None)
        folder = self.folders.keep(self.folders.receive({}), job.name.job)
        folder.run.mkdir()
        if outcome is not None:
            folder.outcome_file.write_bytes(encode(outcome))
        return self.store.change(job.name, started)

    def store_size(self) -> int:
        return len(self.store.list_page(100))

    async def ended(self, job: TrainingJob) -> TrainingJob:
        async for _ in self.jobs.events(job.name, 0):
            pass
        return await self.jobs.get(job.name)


@pytest_asyncio.fixture
async def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "scripted")))
    monkeypatch.setattr(supervisor_module, "_REGISTER_PAUSE_S", 0)
    monkeypatch.setattr(supervisor_module, "_AFTER_FAULT_S", 0)
    migrated(f"sqlite:///{tmp_path / 'registry.db'}")
    made = Case(tmp_path)
    yield made
    await made.jobs.close()


def recipe(**script: Any) -> str:
    return json.dumps({"name": "faq", "steps": 2, "script": script})


PACKAGED = Outcome("packaged", verdict="pass")


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (PACKAGED, JobState.SUCCEEDED),
        (Outcome("failed", "GATE_FAILED", "no gain", verdict="fail"), JobState.FAILED),
        (Outcome("paused"), JobState.PAUSED),
        (Outcome("cancelled"), JobState.CANCELLED),
    ],
    ids=["packaged", "refused", "paused", "cancelled"],
)
async def test_a_job_that_ended_unseen_is_concluded_at_the_next_start(
    case: Case, outcome: Outcome, state: JobState
) -> None:
    job = case.running(outcome)

    await case.jobs.start()

    done = await case.ended(job)
    assert (done.state, done.attempts) == (state, 1)
    assert bool(case.registrar.requests) is (state is JobState.SUCCEEDED)


async def test_a_job_without_its_folder_is_lost_and_says_so(case: Case) -> None:
    job = case.running()
    case.folders.discard(case.folders.of(job.name.job).path)

    await case.jobs.start()

    done = await case.jobs.get(job.name)
    assert done.failure is not None
    assert (done.failure.reason, done.failure.is_resumable) == ("JOB_LOST", False)


async def test_an_engine_that_restarts_does_not_cost_the_adapter(case: Case) -> None:
    job = case.running(PACKAGED)
    case.registrar.faults = [EngineUnavailableError("restarting")] * 3

    await case.jobs.start()

    done = await case.ended(job)
    assert (done.state, done.digest) == (JobState.SUCCEEDED, DIGEST)
    assert len(case.registrar.requests) == 4


async def test_a_tenant_without_room_resumes_when_there_is_some(case: Case, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    case.registrar.faults = [QuotaExceededError("is full", "tenants/team")]
    await case.jobs.start()
    job = await case.jobs.create(NewJob(tenant="team", recipe=recipe(package=str(tmp_path / "package"))))
    done = await case.ended(job)
    assert done.failure is not None
    assert (done.failure.reason, done.failure.is_resumable) == ("QUOTA_EXCEEDED", True)

    await case.jobs.resume(job.name, "")

    assert (await case.ended(job)).state is JobState.SUCCEEDED
    assert {request.alias for request in case.registrar.requests} == {"candidate"}


async def test_another_servers_job_is_shown_and_cancelled_and_not_followed(case: Case) -> None:
    await case.jobs.start()
    job = case.store.create(new_job(owner="b" * 32), None)

    assert (await case.jobs.get(job.name)).state is JobState.QUEUED
    assert [one.name for one in await case.jobs.list_page(10, None, "team")] == [job.name]
    with pytest.raises(TrainingJobElsewhereError):
        await anext(case.jobs.events(job.name, 0))
    with pytest.raises(TrainingJobElsewhereError):
        await case.jobs.resume(job.name, "")
    assert (await case.jobs.cancel(job.name, "")).state is JobState.CANCELLED


async def test_a_cancellation_through_another_server_ends_the_job(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_LOOK_FOR_CANCEL_EVERY_S", 0.05)
    await case.jobs.start()
    endless = json.dumps({"name": "faq", "steps": 10_000, "script": {"step_s": 0.02}})
    job = await case.jobs.create(NewJob(tenant="team", recipe=endless))

    async for event in case.jobs.events(job.name, 0):
        if event.kind == "step":
            break
    case.store.change(job.name, jobs.cancelled)  # as that one does

    assert (await case.ended(job)).state is JobState.CANCELLED


async def test_whoever_begins_to_follow_while_a_job_ends_sees_its_end(case: Case) -> None:
    await case.jobs.start()
    for _ in range(3):
        job = await case.jobs.create(NewJob(tenant="team", recipe=recipe(outcome="failed")))
        followers = []
        while (await case.jobs.get(job.name)).state.is_unfinished:
            followers.append(asyncio.create_task(states_of(case, job)))
            await asyncio.sleep(0)

        assert {states[-1] for states in await asyncio.gather(*followers)} == {"failed"}


async def states_of(case: Case, job: TrainingJob) -> list[str]:
    return [event.state async for event in case.jobs.events(job.name, 0) if event.kind == "state"]


async def test_what_is_refused_leaves_nothing_on_disk(case: Case) -> None:
    await case.jobs.start()
    for new in (
        NewJob(tenant="team", recipe=recipe(violations={"name": "is bad"}), files={"a": b"1"}),
        NewJob(tenant="team", recipe="not JSON", files={"a": b"1"}),
    ):
        with pytest.raises(Exception, match="recipe"):
            await case.jobs.create(new)
    checked = await case.jobs.create(NewJob(tenant="team", recipe=recipe(), validate_only=True))

    assert checked.number == 0
    assert list((case.folder / "training" / "jobs").iterdir()) == []
    assert list((case.folder / "training" / "incoming").iterdir()) == []
    assert case.store_size() == 0
