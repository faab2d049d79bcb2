"""A job's events, followed over broken connections and restarts of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from loraplex.v1 import training_pb2
from loraplex_client import training_decode
from loraplex_client.errors import LoraplexApiError, UnavailableError, api_error
from loraplex_client.retry import backoff_s
from loraplex_client.training_results import TrainingEvent

_END_OF_STREAM: Any = grpc.aio.EOF


class EventPosition:
    """Where a stream of events stands, and how long it has been without a server. Both clients' part in common."""

    def __init__(self, job: str, after_sequence: int, patience_s: float) -> None:
        self._job = job
        self._after = after_sequence
        self._patience_s = patience_s
        self._num_failures = 0
        self._broken_since_s: float | None = None

    def request(self) -> training_pb2.StreamTrainingEventsRequest:
        return training_pb2.StreamTrainingEventsRequest(name=self._job, after_sequence=self._after)

    def take(self, message: training_pb2.StreamTrainingEventsResponse) -> TrainingEvent:
        self._after = message.event.sequence
        self._num_failures = 0
        self._broken_since_s = None
        return training_decode.event(message.event)

    def pause_s(self, failure: LoraplexApiError) -> float | None:
        """Seconds to wait before the next call; None: give the failure to the caller."""
        if not isinstance(failure, UnavailableError):
            return None
        now_s = time.monotonic()
        self._num_failures += 1
        self._broken_since_s = self._broken_since_s or now_s
        is_given_up = now_s - self._broken_since_s >= self._patience_s
        return None if is_given_up else failure.retry_after_s or backoff_s(self._num_failures)


class TrainingEvents(Iterator[TrainingEvent]):
    """Events in order, none twice, until the job has ended or is paused. Leaving its `with` block, or `cancel`, gives
    them up; the job goes on.
    """

    def __init__(self, method: Any, position: EventPosition) -> None:
        self._method = method
        self._position = position
        self._call: Any = None

    def __enter__(self) -> TrainingEvents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __next__(self) -> TrainingEvent:
        while True:
            if self._call is None:
                self._call = self._method(self._position.request())
            try:
                return self._position.take(next(self._call))
            except grpc.RpcError as error:
                failure = api_error(error)
            pause_s = self._position.pause_s(failure)
            if pause_s is None:
                raise failure
            self._call = None
            time.sleep(pause_s)

    def cancel(self) -> None:
        """Give up; nothing happens if the stream is over."""
        if self._call is not None:
            self._call.cancel()


class AsyncTrainingEvents(AsyncIterator[TrainingEvent]):
    """As TrainingEvents, awaited."""

    def __init__(self, method: Any, position: EventPosition) -> None:
        self._method = method
        self._position = position
        self._call: Any = None

    async def __aenter__(self) -> AsyncTrainingEvents:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __anext__(self) -> TrainingEvent:
        while True:
            if self._call is None:
                self._call = self._method(self._position.request())
            try:
                message = await self._call.read()
            except grpc.RpcError as error:
                failure = api_error(error)
            else:
                if message is _END_OF_STREAM:
                    raise StopAsyncIteration
                return self._position.take(message)
            pause_s = self._position.pause_s(failure)
            if pause_s is None:
                raise failure
            self._call = None
            await asyncio.sleep(pause_s)

    def cancel(self) -> None:
        """Give up; nothing happens if the stream is over."""
        if self._call is not None:
            self._call.cancel()
