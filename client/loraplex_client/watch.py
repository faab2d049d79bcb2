"""A watch of the registry that outlives its connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from loraplex.v1 import adapter_pb2
from loraplex_client import adapter_decode, health
from loraplex_client.adapter_results import AdapterEvent
from loraplex_client.errors import DeadlineError, LoraplexApiError, UnavailableError, api_error, unreachable
from loraplex_client.retry import backoff_s

WatchedEvent = tuple[AdapterEvent, str]
"""An event, and the token to go on behind it."""

DEFAULT_PATIENCE_S = 60.0
_ESTABLISHED_AFTER_S = 5.0
"""A connected server that refuses a watch does so sooner; a call that lasted longer was a watch."""
_END_OF_STREAM: Any = grpc.aio.EOF


class WatchPosition:
    """Where a watch stands, and how long it has been without a server. Both clients' part in common."""

    def __init__(self, parent: str, resume_token: str, patience_s: float) -> None:
        self._parent = parent
        self._token = resume_token
        self.patience_s = patience_s
        self._called_s = 0.0
        self._num_failures = 0
        self._broken_since_s: float | None = None

    def check_reached(self, failure: LoraplexApiError) -> None:
        """Raises ServerUnreachableError if a wait for a connection failed; any other failure came over one."""
        if isinstance(failure, DeadlineError):
            raise unreachable(self.patience_s) from None

    def begin_call(self) -> adapter_pb2.WatchAdaptersRequest:
        """The request of a call that begins now, on a connection that stands."""
        self._called_s = time.monotonic()
        return adapter_pb2.WatchAdaptersRequest(parent=self._parent, resume_token=self._token)

    def take(self, message: adapter_pb2.WatchAdaptersResponse) -> WatchedEvent:
        self._token = message.resume_token
        self._forget_failures()
        return adapter_decode.event(message.event), message.resume_token

    def pause_s(self, failure: LoraplexApiError) -> float | None:
        """Seconds to wait before the next call; None: give the failure to the caller."""
        if not isinstance(failure, UnavailableError):
            return None
        now_s = time.monotonic()
        if now_s - self._called_s > _ESTABLISHED_AFTER_S:
            self._forget_failures()
        self._num_failures += 1
        self._broken_since_s = self._broken_since_s or now_s
        is_given_up = now_s - self._broken_since_s >= self.patience_s
        return None if is_given_up else failure.retry_after_s or backoff_s(self._num_failures)

    def _forget_failures(self) -> None:
        self._num_failures = 0
        self._broken_since_s = None


class AdapterWatch(Iterator[WatchedEvent]):
    """Events in order, none twice. Leaving its `with` block, or `cancel`, ends it on the server too."""

    def __init__(self, channel: grpc.Channel, method: Any, position: WatchPosition) -> None:
        self._check: Any = channel.unary_unary(
            health.CHECK_METHOD, request_serializer=health.as_bytes, response_deserializer=health.as_bytes
        )
        self._method = method
        self._position = position
        self._call: Any = None

    def __enter__(self) -> AdapterWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __next__(self) -> WatchedEvent:
        while True:
            if self._call is None:
                self._connect()
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
        """Give up; nothing happens if the watch is over."""
        if self._call is not None:
            self._call.cancel()

    def _connect(self) -> None:
        try:
            self._check(health.REQUEST, timeout=self._position.patience_s, wait_for_ready=True)
        except grpc.RpcError as error:
            self._position.check_reached(api_error(error))
        self._call = self._method(self._position.begin_call())


class AsyncAdapterWatch(AsyncIterator[WatchedEvent]):
    """As AdapterWatch, awaited."""

    def __init__(self, channel: grpc.aio.Channel, method: Any, position: WatchPosition) -> None:
        self._check: Any = channel.unary_unary(
            health.CHECK_METHOD, request_serializer=health.as_bytes, response_deserializer=health.as_bytes
        )
        self._method = method
        self._position = position
        self._call: Any = None

    async def __aenter__(self) -> AsyncAdapterWatch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __anext__(self) -> WatchedEvent:
        while True:
            if self._call is None:
                await self._connect()
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
        """Give up; nothing happens if the watch is over."""
        if self._call is not None:
            self._call.cancel()

    async def _connect(self) -> None:
        try:
            await self._check(health.REQUEST, timeout=self._position.patience_s, wait_for_ready=True)
        except grpc.RpcError as error:
            self._position.check_reached(api_error(error))
        self._call = self._method(self._position.begin_call())
