"""Calls of TrainingService, synchronous."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc

from loraplex.v1 import training_pb2, training_pb2_grpc
from loraplex_client import training_decode as decode
from loraplex_client.calls import call, or_default
from loraplex_client.training_events import EventPosition, TrainingEvents
from loraplex_client.training_requests import create_job_request
from loraplex_client.training_results import TrainingJob
from loraplex_client.watch import DEFAULT_PATIENCE_S

_Response = TypeVar("_Response")


class TrainingCalls:
    """TrainingService; reached as `client.training`. Jobs are named tenants/TENANT/trainingJobs/JOB."""

    def __init__(self, channel: grpc.Channel, timeout_s: float | None) -> None:
        self._stub = training_pb2_grpc.TrainingServiceStub(channel)
        self._timeout_s = timeout_s

    def create(
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
        """Queue a training.

        recipe       YAML text
        files        what the recipe names, by the paths that it uses; or
        data_folder  a folder of the server's machine that these paths are relative to
        alias        that shall point at the version; left out "candidate"
        request_id   given again, the same job is created once; left out: drawn
        """
        request = create_job_request(
            recipe, tenant, files, str(data_folder), alias, validate_only, request_id
        )
        return self._job(self._stub.CreateTrainingJob, request, timeout_s)

    def get(self, name: str, timeout_s: float | None = None) -> TrainingJob:
        return self._job(self._stub.GetTrainingJob, training_pb2.GetTrainingJobRequest(name=name), timeout_s)

    def list(
        self, parent: str = "", page_size: int = 0, timeout_s: float | None = None
    ) -> Iterator[TrainingJob]:
        """Jobs, newest first, without their recipes; pages are fetched as they are needed.

        parent  "tenants/TENANT"; empty: of all tenants
        """
        token = ""
        while True:
            request = training_pb2.ListTrainingJobsRequest(
                parent=parent, page_size=page_size, page_token=token
            )
            page = self._call(self._stub.ListTrainingJobs, request, timeout_s)
            yield from map(decode.job, page.jobs)
            token = page.next_page_token
            if not token:
                return

    def cancel(self, name: str, *, etag: str = "", timeout_s: float | None = None) -> TrainingJob:
        """End a job. One that runs ends within seconds: follow its events."""
        request = training_pb2.CancelTrainingJobRequest(name=name, etag=etag)
        return self._job(self._stub.CancelTrainingJob, request, timeout_s)

    def resume(self, name: str, *, etag: str = "", timeout_s: float | None = None) -> TrainingJob:
        """Let a job that is paused, or failed and resumable, go on."""
        request = training_pb2.ResumeTrainingJobRequest(name=name, etag=etag)
        return self._job(self._stub.ResumeTrainingJob, request, timeout_s)

    def events(
        self, name: str, after_sequence: int = 0, *, patience_s: float = DEFAULT_PATIENCE_S
    ) -> TrainingEvents:
        """What happened in a job and what happens, until it has ended or is paused.

        Goes on by itself behind the last event where the connection breaks. Raises EventsExpiredError for a sequence
        too old, UnavailableError after `patience_s` without a server.
        """
        position = EventPosition(name, after_sequence, patience_s)
        return TrainingEvents(self._stub.StreamTrainingEvents, position)

    def _job(self, method: Callable[..., Any], request: object, timeout_s: float | None) -> TrainingJob:
        return decode.job(self._call(method, request, timeout_s).job)

    def _call(self, method: Callable[..., _Response], request: object, timeout_s: float | None) -> _Response:
        return call(method, request, or_default(timeout_s, self._timeout_s))
