"""TrainingService: train adapters beside the server."""

from __future__ import annotations

from loraplex.v1 import training_pb2 as pb
from loraplex.v1 import training_pb2_grpc
from loraplex_adapters.errors import invalid
from loraplex_adapters.names import parse_tenant
from loraplex_server.errors import TrainingDisabledError
from loraplex_server.rpc import training_messages as messages
from loraplex_server.rpc.grpc_types import Context
from loraplex_server.rpc.serving import Serving
from loraplex_server.rpc.stall_guard import StallGuard
from loraplex_server.training.jobs import JobName
from loraplex_server.training.service import TrainingJobs

_DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE = 100, 1000


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """The jobs do the work; this speaks for them."""

    def __init__(self, serving: Serving, write_stall_timeout_s: float) -> None:
        """Seconds that a client may leave events unread."""
        self._serving = serving
        self._write_stall_timeout_s = write_stall_timeout_s

    @property
    def _jobs(self) -> TrainingJobs:
        jobs = self._serving.parts().training
        if jobs is None:
            raise TrainingDisabledError("this server runs no training jobs; its setting `training` is off")
        return jobs

    async def CreateTrainingJob(
        self, request: pb.CreateTrainingJobRequest, context: Context
    ) -> pb.CreateTrainingJobResponse:
        job = await self._jobs.create(messages.new_job(request))
        return pb.CreateTrainingJobResponse(job=messages.job_message(job))

    async def GetTrainingJob(
        self, request: pb.GetTrainingJobRequest, context: Context
    ) -> pb.GetTrainingJobResponse:
        job = await self._jobs.get(JobName.parse(request.name))
        return pb.GetTrainingJobResponse(job=messages.job_message(job))

    async def ListTrainingJobs(
        self, request: pb.ListTrainingJobsRequest, context: Context
    ) -> pb.ListTrainingJobsResponse:
        jobs = self._jobs
        if request.page_size > _MAX_PAGE_SIZE:
            raise invalid("page_size", f"must be at most {_MAX_PAGE_SIZE}")
        page_size = request.page_size or _DEFAULT_PAGE_SIZE
        found = await jobs.list_page(
            page_size + 1,  # one more than a page tells whether there is another
            messages.number_before_page(request.page_token),
            parse_tenant(request.parent) if request.parent else None,
        )
        page = found[:page_size]
        return pb.ListTrainingJobsResponse(
            jobs=[messages.job_message(job, with_recipe=False) for job in page],
            next_page_token=messages.page_token(page[-1]) if len(found) > page_size else "",
        )

    async def CancelTrainingJob(
        self, request: pb.CancelTrainingJobRequest, context: Context
    ) -> pb.CancelTrainingJobResponse:
        job = await self._jobs.cancel(JobName.parse(request.name), request.etag)
        return pb.CancelTrainingJobResponse(job=messages.job_message(job))

    async def ResumeTrainingJob(
        self, request: pb.ResumeTrainingJobRequest, context: Context
    ) -> pb.ResumeTrainingJobResponse:
        job = await self._jobs.resume(JobName.parse(request.name), request.etag)
        return pb.ResumeTrainingJobResponse(job=messages.job_message(job))

    async def StreamTrainingEvents(  # type: ignore[override]  # writes to the context, to notice a client that does not read
        self, request: pb.StreamTrainingEventsRequest, context: Context
    ) -> None:
        jobs = self._jobs
        name = JobName.parse(request.name)
        with StallGuard(self._write_stall_timeout_s) as guard:
            async for event in jobs.events(name, request.after_sequence):
                await guard.write(context, messages.event_message(event))
