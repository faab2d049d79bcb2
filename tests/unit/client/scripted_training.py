"""TrainingService as a script: remembers what it was asked, breaks event streams off as told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from loraplex.v1 import training_pb2, training_pb2_grpc
from tests.unit.client.faults import Fault, abort

if TYPE_CHECKING:
    from tests.unit.client.scripted_server import ScriptedServer

NAME = "tenants/team/trainingJobs/0123456789abcdef"
CREATED = Timestamp(seconds=1_700_000_000, nanos=500_000_000)


@dataclass
class Training:
    """What happened to TrainingService, and what is to happen."""

    requests: list[Message] = field(default_factory=list)  # unary ones, in order
    followed_after: list[int] = field(default_factory=list)  # of each call
    num_events: int = 5
    event_faults: list[Fault] = field(default_factory=list)  # each after two more events
    num_listed: int = 0
    state: training_pb2.TrainingJob.State.ValueType = training_pb2.TrainingJob.STATE_SUCCEEDED
    verdict: training_pb2.TrainingJob.Verdict.ValueType = training_pb2.TrainingJob.VERDICT_PASS
    failure: training_pb2.TrainingJob.Failure | None = None


def job(training: Training, name: str = NAME) -> training_pb2.TrainingJob:
    message = training_pb2.TrainingJob(
        name=name,
        adapter="tenants/team/adapters/faq",
        alias="candidate",
        recipe="name: faq",
        device="cpu",
        state=training.state,
        progress=training_pb2.TrainingJob.Progress(stage="train", step=3, num_steps=9, loss=0.5),
        digest="d" * 64,
        verdict=training.verdict,
        attempts=1,
        etag="7",
        create_time=CREATED,
        update_time=CREATED,
    )
    if training.failure is not None:
        message.failure.CopyFrom(training.failure)
    return message


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Speaks from the script."""

    def __init__(self, script: ScriptedServer) -> None:
        self._script = script

    def _take(self, request: Message, context: Any) -> training_pb2.TrainingJob:
        self._script.training.requests.append(request)
        self._script.fail_if_told(context)
        return job(self._script.training)

    def CreateTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.CreateTrainingJobResponse(job=self._take(request, context))

    def GetTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.GetTrainingJobResponse(job=self._take(request, context))

    def CancelTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.CancelTrainingJobResponse(job=self._take(request, context))

    def ResumeTrainingJob(self, request: Any, context: Any) -> Any:
        return training_pb2.ResumeTrainingJobResponse(job=self._take(request, context))

    def ListTrainingJobs(self, request: Any, context: Any) -> Any:
        training = self._script.training
        training.requests.append(request)
        start = int(request.page_token or 0)
        end = min(start + (request.page_size or 100), training.num_listed)
        return training_pb2.ListTrainingJobsResponse(
            jobs=[job(training, f"{NAME[:-4]}{number:04x}") for number in range(start, end)],
            next_page_token=str(end) if end < training.num_listed else "",
        )

    def StreamTrainingEvents(self, request: Any, context: Any) -> Iterator[Any]:
        training = self._script.training
        training.followed_after.append(request.after_sequence)
        fault = training.event_faults.pop(0) if training.event_faults else None
        for told, number in enumerate(range(request.after_sequence + 1, training.num_events + 1)):
            if fault is not None and told == 2:
                abort(context, fault)
            yield training_pb2.StreamTrainingEventsResponse(
                event=training_pb2.TrainingEvent(
                    sequence=number,
                    time=CREATED,
                    kind=training_pb2.TrainingEvent.KIND_STEP,
                    stage="train",
                    step=number,
                    num_steps=training.num_events,
                    values={"loss": 0.5},
                )
            )
