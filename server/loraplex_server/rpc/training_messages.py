"""Between protobuf and training jobs; documented ranges are checked here."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from loraplex.v1 import training_pb2
from loraplex_adapters.errors import FieldViolation, InvalidRequestError, invalid
from loraplex_adapters.names import parse_alias, parse_tenant
from loraplex_server.rpc.adapter_messages import once
from loraplex_server.training.event_log import JobEvent
from loraplex_server.training.jobs import CANDIDATE, JobState, TrainingJob, Verdict
from loraplex_server.training.service import NewJob

_PAGE_TOKEN_PREFIX = b"trainingJobs:"
_STATES = {state: training_pb2.TrainingJob.State.Value(f"STATE_{state.name}") for state in JobState}
_VERDICTS = {
    verdict: training_pb2.TrainingJob.Verdict.Value(f"VERDICT_{verdict.name}") for verdict in Verdict
}
_KINDS = {
    kind: training_pb2.TrainingEvent.Kind.Value(f"KIND_{kind.upper()}")
    for kind in ("state", "stage", "step", "metrics", "log", "warning")
}


def new_job(message: training_pb2.CreateTrainingJobRequest) -> NewJob:
    """Raises InvalidRequestError."""
    tenant = parse_tenant(message.parent)
    if message.files and message.data_folder:
        raise invalid("data_folder", "excludes files: the recipe's paths are relative to one place")
    return NewJob(
        tenant=tenant,
        recipe=message.recipe,
        files=_files(message.files),
        data_folder=message.data_folder,
        alias=parse_alias(message.alias) if message.alias else CANDIDATE,
        validate_only=message.validate_only,
        once=once(message),
    )


def _files(messages: Iterable[training_pb2.TrainingFile]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    violations = []
    for index, message in enumerate(messages):
        if message.name in files:
            violations.append(FieldViolation(f"files[{index}].name", "is there twice"))
        files[message.name] = message.content
    if violations:
        raise InvalidRequestError(violations[:16])
    return files


def page_token(job: TrainingJob) -> str:
    """Stands for the page behind `job`."""
    return base64.urlsafe_b64encode(_PAGE_TOKEN_PREFIX + str(job.number).encode()).decode()


def number_before_page(token: str) -> int | None:
    """The number below which a page begins; None for the first. Raises InvalidRequestError."""
    if not token:
        return None
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii"))
        number = raw.removeprefix(_PAGE_TOKEN_PREFIX)
        if raw.startswith(_PAGE_TOKEN_PREFIX) and number.isdigit() and len(number) <= 18:
            return int(number)
    except (binascii.Error, UnicodeError, ValueError):
        pass  # answered below like any other token that is not ours
    raise invalid("page_token", "is not a token that this server gave out")


def job_message(job: TrainingJob, *, with_recipe: bool = True) -> training_pb2.TrainingJob:
    """A job; one that is not stored has no name."""
    message = training_pb2.TrainingJob(
        name=str(job.name) if job.number else "",
        adapter=job.adapter.resource,
        alias=job.alias,
        recipe=job.recipe if with_recipe else "",
        data_folder=job.data_folder,
        device=job.device,
        state=_STATES[job.state],
        progress=_progress(job),
        digest=job.digest,
        verdict=_VERDICTS[job.verdict] if job.verdict else training_pb2.TrainingJob.VERDICT_UNSPECIFIED,
        attempts=job.attempts,
        etag=str(job.revision),
    )
    if job.failure is not None:
        failure = training_pb2.TrainingJob.Failure(
            reason=job.failure.reason, message=job.failure.message, resumable=job.failure.is_resumable
        )
        message.failure.CopyFrom(failure)
    _set_moment(message.create_time, job.created_at)
    _set_moment(message.update_time, job.updated_at)
    if job.started_at is not None:
        _set_moment(message.start_time, job.started_at)
    if job.ended_at is not None:
        _set_moment(message.end_time, job.ended_at)
    return message


def event_message(event: JobEvent) -> training_pb2.StreamTrainingEventsResponse:
    """One event."""
    message = training_pb2.TrainingEvent(
        sequence=event.sequence,
        kind=_KINDS[event.kind],
        stage=event.stage,
        step=event.step,
        num_steps=event.num_steps,
        values=event.values,
        text=event.text,
    )
    if event.state:
        message.state = _STATES[JobState(event.state)]
    _set_moment(message.time, event.at)
    return training_pb2.StreamTrainingEventsResponse(event=message)


def _progress(job: TrainingJob) -> training_pb2.TrainingJob.Progress:
    progress = job.progress
    return training_pb2.TrainingJob.Progress(
        stage=progress.stage,
        step=progress.step,
        num_steps=progress.num_steps,
        loss=progress.loss,
        eta_seconds=progress.eta_s,
    )


def _set_moment(field: Timestamp, moment: datetime) -> None:
    field.FromDatetime(moment)
