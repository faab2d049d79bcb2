"""Protobuf messages of TrainingService -> the records of `training_results`."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from loraplex.v1 import training_pb2
from loraplex_client.training_results import (
    TrainingEvent,
    TrainingEventKind,
    TrainingFailure,
    TrainingJob,
    TrainingJobState,
    TrainingProgress,
    TrainingVerdict,
)

_STATES = {
    training_pb2.TrainingJob.STATE_QUEUED: TrainingJobState.QUEUED,
    training_pb2.TrainingJob.STATE_RUNNING: TrainingJobState.RUNNING,
    training_pb2.TrainingJob.STATE_PAUSED: TrainingJobState.PAUSED,
    training_pb2.TrainingJob.STATE_SUCCEEDED: TrainingJobState.SUCCEEDED,
    training_pb2.TrainingJob.STATE_FAILED: TrainingJobState.FAILED,
    training_pb2.TrainingJob.STATE_CANCELLED: TrainingJobState.CANCELLED,
}
_VERDICTS = {
    training_pb2.TrainingJob.VERDICT_UNSPECIFIED: TrainingVerdict.NONE,
    training_pb2.TrainingJob.VERDICT_PASS: TrainingVerdict.PASS,
    training_pb2.TrainingJob.VERDICT_FAIL: TrainingVerdict.FAIL,
    training_pb2.TrainingJob.VERDICT_INCONCLUSIVE: TrainingVerdict.INCONCLUSIVE,
}
_KINDS = {
    training_pb2.TrainingEvent.KIND_STATE: TrainingEventKind.STATE,
    training_pb2.TrainingEvent.KIND_STAGE: TrainingEventKind.STAGE,
    training_pb2.TrainingEvent.KIND_STEP: TrainingEventKind.STEP,
    training_pb2.TrainingEvent.KIND_METRICS: TrainingEventKind.METRICS,
    training_pb2.TrainingEvent.KIND_LOG: TrainingEventKind.LOG,
    training_pb2.TrainingEvent.KIND_WARNING: TrainingEventKind.WARNING,
}


def job(message: training_pb2.TrainingJob) -> TrainingJob:
    failure = None
    if message.HasField("failure"):
        told = message.failure
        failure = TrainingFailure(told.reason, told.message, told.resumable)
    progress = message.progress
    return TrainingJob(
        name=message.name,
        adapter=message.adapter,
        alias=message.alias,
        recipe=message.recipe,
        data_folder=message.data_folder,
        device=message.device,
        state=_STATES.get(message.state, TrainingJobState.UNKNOWN),
        progress=TrainingProgress(
            stage=progress.stage,
            step=progress.step,
            num_steps=progress.num_steps,
            loss=progress.loss if progress.HasField("loss") else None,
            eta_seconds=progress.eta_seconds if progress.HasField("eta_seconds") else None,
        ),
        digest=message.digest,
        verdict=_VERDICTS.get(message.verdict, TrainingVerdict.UNKNOWN),
        failure=failure,
        attempts=message.attempts,
        etag=message.etag,
        create_time=_time(message.create_time),
        start_time=_time(message.start_time) if message.HasField("start_time") else None,
        end_time=_time(message.end_time) if message.HasField("end_time") else None,
        update_time=_time(message.update_time),
    )


def event(message: training_pb2.TrainingEvent) -> TrainingEvent:
    kind = _KINDS.get(message.kind, TrainingEventKind.UNKNOWN)
    is_state = kind is TrainingEventKind.STATE
    return TrainingEvent(
        sequence=message.sequence,
        time=_time(message.time),
        kind=kind,
        stage=message.stage,
        state=_STATES.get(message.state, TrainingJobState.UNKNOWN) if is_state else None,
        step=message.step,
        num_steps=message.num_steps,
        values=dict(sorted(message.values.items())),
        text=message.text,
    )


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)
