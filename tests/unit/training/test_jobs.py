"""Whatever is asked of a job in whatever order, it is in one state that fits what is known of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_adapters.errors import EtagMismatchError, InvalidRequestError
from loraplex_server.errors import TrainingJobStateError
from loraplex_server.training import jobs
from loraplex_server.training.jobs import (
    MAX_INTERRUPTED_ATTEMPTS,
    Failure,
    JobName,
    JobState,
    TrainingJob,
    Verdict,
)
from tests.unit.training.conftest import MOMENT, new_job

RESUMABLE = Failure("JOB_KILLED", "killed", True)
FINAL = Failure("GATE_FAILED", "no gain", False)
Move = Callable[[TrainingJob], TrainingJob]


def only_running(move: Move) -> Move:
    """What its supervisor does happens to a job that runs."""
    return lambda job: move(job) if job.state is JobState.RUNNING else job


MOVES: dict[str, Move] = {
    "start": lambda job: jobs.started(job, MOMENT),
    "cancel": lambda job: jobs.cancelled(job, MOMENT),
    "resume": jobs.resumed,
    "interrupt": lambda job: jobs.interrupted(job, MOMENT),
    "kill": only_running(lambda job: jobs.failed(job, RESUMABLE, MOMENT)),
    "refuse": only_running(lambda job: jobs.failed(job, FINAL, MOMENT, Verdict.FAIL)),
    "pause": only_running(lambda job: jobs.ended(job, JobState.PAUSED, MOMENT)),
    "succeed": only_running(lambda job: jobs.succeeded(job, "d" * 64, MOMENT)),
}


@given(st.lists(st.sampled_from(sorted(MOVES)), max_size=40))
def test_every_course_keeps_the_job_whole(course: list[str]) -> None:
    job = new_job()
    for name in course:
        before = job
        try:
            job = MOVES[name](job)
        except TrainingJobStateError:
            assert name in ("cancel", "resume")
            continue
        if before.state in (JobState.SUCCEEDED, JobState.CANCELLED):
            assert job is before
        assert (job.failure is not None) == (job.state is JobState.FAILED)
        assert bool(job.digest) == (job.state is JobState.SUCCEEDED)
        assert (job.ended_at is None) == job.state.is_unfinished
        assert (job.started_at is None) == (job.attempts == 0)
        assert job.attempts == before.attempts + (name == "start" and before.state is JobState.QUEUED)


def test_a_job_that_was_cancelled_while_it_ran_does_not_go_on_after_a_restart() -> None:
    job = jobs.cancelled(jobs.started(new_job(), MOMENT), MOMENT)
    assert job.state is JobState.RUNNING

    assert jobs.interrupted(job, MOMENT).state is JobState.CANCELLED


def test_a_job_that_may_be_what_ends_its_server_is_left_for_a_person() -> None:
    job = new_job()
    for _ in range(MAX_INTERRUPTED_ATTEMPTS):
        job = jobs.interrupted(jobs.started(job, MOMENT), MOMENT)

    assert job.failure is not None
    assert job.failure.reason == "JOB_INTERRUPTED"
    assert jobs.resumed(job).state is JobState.QUEUED


def test_what_the_gate_refused_is_not_resumed() -> None:
    job = jobs.failed(jobs.started(new_job(), MOMENT), FINAL, MOMENT, Verdict.FAIL)

    with pytest.raises(TrainingJobStateError, match="create a new one"):
        jobs.resumed(job)


def test_an_etag_that_has_passed_is_refused() -> None:
    jobs.check_etag(new_job(revision=3), "3")
    jobs.check_etag(new_job(revision=3), "")
    with pytest.raises(EtagMismatchError):
        jobs.check_etag(new_job(revision=3), "2")


def test_a_name_reads_back_to_itself() -> None:
    name = JobName("team", "0123456789abcdef")

    assert JobName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    ["", "team", "tenants/team", "tenants/team/trainingJobs/", "tenants/team/trainingJobs/../x", "a/b/c/d"],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        JobName.parse(text)
