"""What the wire says of training jobs is what the server means, and what it cannot mean is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from loraplex.v1 import training_pb2 as pb
from loraplex_adapters.errors import InvalidRequestError
from loraplex_server.rpc import training_messages as messages
from loraplex_server.training.event_log import JobEvent
from loraplex_server.training.jobs import Failure, JobState, Progress, Verdict
from tests.unit.training.conftest import MOMENT, new_job


def request(**fields: object) -> pb.CreateTrainingJobRequest:
    return pb.CreateTrainingJobRequest(**{"parent": "tenants/team", "recipe": "x", **fields})  # type: ignore[arg-type]


def test_a_request_is_read_whole() -> None:
    files = [pb.TrainingFile(name="a", content=b"1")]

    new = messages.new_job(request(files=files, alias="canary", validate_only=True, request_id="r"))

    assert (new.tenant, new.recipe, new.files, new.alias) == ("team", "x", {"a": b"1"}, "canary")
    assert new.validate_only
    assert new.once is not None
    assert messages.new_job(request()).alias == "candidate"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"parent": ""}, "parent"),
        ({"parent": "team"}, "parent"),
        ({"parent": "tenants/Team"}, "parent"),
        ({"alias": "Bad alias"}, "alias"),
        ({"data_folder": "/a", "files": [pb.TrainingFile(name="a")]}, "data_folder"),
        ({"files": [pb.TrainingFile(name="a"), pb.TrainingFile(name="a")]}, "files[1].name"),
        ({"request_id": "x" * 129}, "request_id"),
    ],
    ids=["no-parent", "short-parent", "bad-tenant", "alias", "both", "twice", "request-id"],
)
def test_what_is_out_of_range_is_refused_by_field(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        messages.new_job(request(**fields))

    assert caught.value.violations[0].field == field


def test_the_files_are_part_of_what_an_id_stands_for() -> None:
    ids = {
        messages.new_job(request(request_id="r", files=[pb.TrainingFile(name="a", content=content)])).once
        for content in (b"1", b"2")
    }

    assert len({once.content for once in ids if once}) == 2


def test_a_job_is_told_whole() -> None:
    job = new_job(
        state=JobState.FAILED,
        verdict=Verdict.INCONCLUSIVE,
        failure=Failure("GATE_INCONCLUSIVE", "too few", False),
        progress=Progress("gate", 1, 2, None, 3.5),
        attempts=2,
        started_at=MOMENT,
        ended_at=MOMENT + timedelta(microseconds=1),
    )

    job = replace(job, number=4)  # it is stored

    told = messages.job_message(job)

    assert told.name == str(job.name)
    assert told.adapter == "tenants/team/adapters/faq"
    assert told.state == pb.TrainingJob.STATE_FAILED
    assert told.verdict == pb.TrainingJob.VERDICT_INCONCLUSIVE
    assert (told.failure.reason, told.failure.resumable) == ("GATE_INCONCLUSIVE", False)
    assert not told.progress.HasField("loss")
    assert told.progress.eta_seconds == 3.5
    assert told.end_time.ToMicroseconds() - told.start_time.ToMicroseconds() == 1
    assert told.recipe == job.recipe
    assert messages.job_message(job, with_recipe=False).recipe == ""


def test_a_job_that_was_only_checked_has_no_name_and_no_times_of_a_run() -> None:
    told = messages.job_message(new_job())

    assert told.name == ""
    assert not told.HasField("start_time")
    assert not told.HasField("end_time")
    assert not told.HasField("failure")
    assert told.verdict == pb.TrainingJob.VERDICT_UNSPECIFIED


@pytest.mark.parametrize("kind", ["state", "stage", "step", "metrics", "log", "warning"])
def test_every_kind_of_event_can_be_told(kind: str) -> None:
    event = JobEvent(sequence=3, at=MOMENT, kind=kind, values={"loss": 0.5}, state="running")

    told = messages.event_message(event).event

    assert told.kind == pb.TrainingEvent.Kind.Value(f"KIND_{kind.upper()}")
    assert told.values == {"loss": 0.5}
    assert told.state == pb.TrainingJob.STATE_RUNNING


def test_a_page_token_leads_on_and_no_other_does() -> None:
    job = replace(new_job(), number=7)

    assert messages.number_before_page(messages.page_token(job)) == job.number
    assert messages.number_before_page("") is None
    for token in ("x", "eA==", "YWRhcHRlcnM6eA==", "é"):
        with pytest.raises(InvalidRequestError):
            messages.number_before_page(token)
