"""Calls of TrainingService, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio

from loraplex.v1 import training_pb2, training_pb2_grpc
from loraplex_client import training_decode as decode
from loraplex_client.calls import call_async, or_default
from loraplex_client.training_events import AsyncTrainingEvents, EventPosition
from loraplex_client.training_requests import create_job_request
from loraplex_client.training_results import TrainingJob
from loraplex_client.watch import DEFAULT_PATIENCE_S

_Response = TypeVar("_Response")


class AsyncTrainingCalls:
    """As TrainingCalls, awaited; reached as `client.training`."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float | None) -> None:
        self._stub = training_pb2_grpc.TrainingServiceStub(channel)
        self._timeout_s = timeout_s

    async def create(
        self,
        recipe: str,
        tenant: str = "default",
        *,
        files: Mapping[str, bytes] | None = None,
        data_folder: Path | str = "",
        alias: str = "",
        validate_only: bool = False,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> TrainingJob:
        """Queue a training. As TrainingCalls.create."""
        request = create_job_request(
            recipe, tenant, files, str(data_folder), alias, validate_only, request_id
        )
        return await self._job(self._stub.CreateTrainingJob, request, timeout_s)

    async def get(self, name: str, timeout_s: float | None = None) -> TrainingJob:
        return await self._job(
            self._stub.GetTrainingJob, training_pb2.GetTrainingJobRequest(name=name), timeout_s
        )

    async def list(
        self, parent: str = "", page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncIterator[TrainingJob]:
        """Jobs, newest first, without their recipes; pages are fetched as they are needed.

        parent  "tenants/TENANT"; empty: of all tenants
        """
        token = ""
        while True:
            request = training_pb2.ListTrainingJobsRequest(
                parent=parent, page_size=page_size, page_token=token
            )
            page = await self._call(self._stub.ListTrainingJobs, request, timeout_s)
            for message in page.jobs:
                yield decode.job(message)
            token = page.next_page_token
            if not token:
                return

    async def cancel(self, name: str, *, etag: str = "", timeout_s: float | None = None) -> TrainingJob:
        """End a job. One that runs ends within seconds: follow its events."""
        request = training_pb2.CancelTrainingJobRequest(name=name, etag=etag)
        return await self._job(self._stub.CancelTrainingJob, request, timeout_s)

    async def resume(self, name: str, *, etag: str = "", timeout_s: float | None = None) -> TrainingJob:
        """Let a job that is paused, or failed and resumable, go on."""
        request = training_pb2.ResumeTrainingJobRequest(name=name, etag=etag)
        return await self._job(self._stub.ResumeTrainingJob, request, timeout_s)

    def events(
        self, name: str, after_sequence: int = 0, *, patience_s: float = DEFAULT_PATIENCE_S
    ) -> AsyncTrainingEvents:
        """What happens in a job. As TrainingCalls.events."""
        position = EventPosition(name, after_sequence, patience_s)
        return AsyncTrainingEvents(self._stub.StreamTrainingEvents, position)

    async def _job(
        self, method: Callable[..., Awaitable[Any]], request: object, timeout_s: float | None
    ) -> TrainingJob:
        return decode.job((await self._call(method, request, timeout_s)).job)

    async def _call(
        self, method: Callable[..., Awaitable[_Response]], request: object, timeout_s: float | None
    ) -> _Response:
        return await call_async(method, request, or_default(timeout_s, self._timeout_s))
