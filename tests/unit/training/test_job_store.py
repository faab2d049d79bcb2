"""Jobs are kept whole, counted per tenant, made once per request id, and changed one at a time."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from loraplex_adapters.errors import QuotaExceededError, RequestIdReusedError
from loraplex_adapters.registry import Once
from loraplex_server.errors import TrainingJobNotFoundError
from loraplex_server.training import jobs
from loraplex_server.training.job_store import JobStore
from loraplex_server.training.jobs import Failure, JobName, JobState, Progress, TrainingJob, Verdict
from tests.unit.adapters.release_case import Clock
from tests.unit.training.conftest import MOMENT, new_job

PROGRESS = Progress("train", 3, 10, 0.5, 7.25)


def unchanged(job: TrainingJob, now: datetime) -> TrainingJob:
    return job


def finished(job: TrainingJob, now: datetime) -> TrainingJob:
    return jobs.ended(job, JobState.CANCELLED, now)


def test_a_job_is_read_as_it_was_written(store: JobStore) -> None:
    whole = new_job(
        state=JobState.FAILED,
        is_cancel_requested=True,
        progress=PROGRESS,
        digest="d" * 64,
        verdict=Verdict.FAIL,
        failure=Failure("GATE_FAILED", "why", True),
        attempts=2,
        started_at=MOMENT + timedelta(seconds=1),
        ended_at=MOMENT + timedelta(seconds=2),
        data_folder="/data",
    )

    stored = store.create(whole, None)

    assert stored == replace(whole, number=stored.number)
    assert store.get(whole.name) == stored


def test_another_tenants_job_is_not_there(store: JobStore) -> None:
    job = store.create(new_job(), None)

    with pytest.raises(TrainingJobNotFoundError):
        store.get(JobName("other", job.name.job))
    assert store.list_page(10, tenant="other") == []


def test_pages_are_newest_first_and_no_new_job_shifts_them(store: JobStore) -> None:
    made = [store.create(new_job(number, tenant=f"t{number}"), None) for number in range(4)]

    first = store.list_page(2)
    store.create(new_job(9, tenant="late"), None)
    second = store.list_page(2, before=first[-1].number)

    assert [job.name for job in (*first, *second)] == [job.name for job in made[::-1]]


def test_a_tenant_has_so_many_unfinished_jobs_and_no_more(store: JobStore) -> None:
    made = [store.create(new_job(number), None) for number in range(3)]
    with pytest.raises(QuotaExceededError, match="tenants/team"):
        store.create(new_job(3), None)
    with pytest.raises(QuotaExceededError):
        store.check_quota("team")
    store.create(new_job(3, tenant="other"), None)

    store.change(made[0].name, finished)

    store.create(new_job(4), None)


def test_two_that_ask_at_once_do_not_both_get_the_last_place(store: JobStore) -> None:
    for number in range(2):
        store.create(new_job(number), None)
    refused: list[Exception] = []

    def create(number: int) -> None:
        try:
            store.create(new_job(number), None)
        except QuotaExceededError as error:
            refused.append(error)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(10, 14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(refused) == 3


def test_a_request_id_makes_one_job_for_a_day(store: JobStore, clock: Clock) -> None:
    once = Once("id", "content")
    first = store.create(new_job(1, created_at=clock.now, updated_at=clock.now), once)
    assert store.answer_to(first.name.tenant, once) == first
    assert store.answer_to("elsewhere", once) is None
    assert store.create(new_job(2), once) == first
    with pytest.raises(RequestIdReusedError):
        store.create(new_job(2), Once("id", "other"))

    clock.now += timedelta(days=1)

    assert store.answer_to(first.name.tenant, once) is None
    assert store.create(new_job(3, created_at=clock.now), Once("id", "other")).name != first.name


def test_a_change_raises_the_revision_and_progress_does_not(store: JobStore) -> None:
    job = store.create(new_job(), None)

    store.note_progress(job.name, PROGRESS)
    assert store.change(job.name, unchanged).revision == job.revision
    changed = store.change(job.name, jobs.started)

    assert changed.revision == job.revision + 1
    assert changed.progress == PROGRESS
    assert changed.state is JobState.RUNNING
    assert store.get(job.name) == changed


def test_only_a_servers_own_jobs_are_its_business(store: JobStore) -> None:
    mine = store.create(new_job(1), None)
    store.create(new_job(2, owner="b" * 32), None)

    assert store.owned(mine.owner, [JobState.QUEUED]) == [mine]
    assert store.owned(mine.owner, [JobState.RUNNING]) == []
