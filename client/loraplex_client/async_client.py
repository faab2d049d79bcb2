"""The asyncio client. Belongs to the event loop that it is used in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Unpack

import grpc
import grpc.aio

from loraplex.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    ops_pb2,
    ops_pb2_grpc,
)
from loraplex_client import decode, health
from loraplex_client.async_adapter_calls import AsyncAdapterCalls
from loraplex_client.async_training_calls import AsyncTrainingCalls
from loraplex_client.calls import call_async, or_default
from loraplex_client.client import DEFAULT_TARGET, DEFAULT_TIMEOUT_S
from loraplex_client.errors import LoraplexApiError, api_error, unreachable
from loraplex_client.requests import (
    GenerateOptions,
    Messages,
    count_request,
    generate_request,
)
from loraplex_client.results import Completion, ServerInfo, StreamEvent
from loraplex_client.retry import RetryBudget
from loraplex_client.service_config import channel_options

_END_OF_STREAM: Any = grpc.aio.EOF


class AsyncLoraplexClient:
    """As LoraplexClient, awaited. Make it inside the event loop that uses it."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """`target` is host:port; `credentials` None means plain text. Connects on the first call."""
        self.target = target
        self.timeout_s = timeout_s
        self._channel = (
            grpc.aio.insecure_channel(target, channel_options())
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, channel_options())
        )
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._ops = ops_pb2_grpc.OpsServiceStub(self._channel)
        self._health: Any = self._channel.unary_unary(
            health.CHECK_METHOD,
            request_serializer=health.as_bytes,
            response_deserializer=health.as_bytes,
        )
        self.adapters = AsyncAdapterCalls(self._channel, timeout_s)
        self.training = AsyncTrainingCalls(self._channel, timeout_s)

    async def __aenter__(self) -> AsyncLoraplexClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; running calls end CANCELLED."""
        await self._channel.close(None)

    async def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        token_ids: Sequence[int] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """One completion, whole. Give exactly one of prompt, messages and token_ids."""
        request = generate_request(prompt, messages, token_ids, options)
        return decode.completion(
            await call_async(self._inference.Generate, request, or_default(timeout_s, self.timeout_s))
        )

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        token_ids: Sequence[int] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncCompletionStream:
        """One completion as events: a Started, Deltas, a Finished. Give exactly one of the inputs."""
        request = inference_pb2.StreamGenerateRequest(
            request=generate_request(prompt, messages, token_ids, options)
        )
        return AsyncCompletionStream(
            self._inference.StreamGenerate, request, or_default(timeout_s, self.timeout_s)
        )

    async def count_tokens(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Tokens that the input would put in front of the model."""
        request = count_request(prompt, messages)
        response = await call_async(
            self._inference.CountTokens, request, or_default(timeout_s, self.timeout_s)
        )
        return response.token_count

    async def server_info(self, timeout_s: float | None = None) -> ServerInfo:
        """Versions, base model, limits and load."""
        request = ops_pb2.GetServerInfoRequest()
        return decode.server_info(
            await call_async(self._ops.GetServerInfo, request, or_default(timeout_s, self.timeout_s))
        )

    async def drain(self, grace_s: float | None = None, timeout_s: float | None = None) -> int:
        """Stop the server once running requests have finished, or after `grace_s`. Returns their number."""
        request = ops_pb2.DrainRequest(grace_seconds=grace_s)
        return (await call_async(self._ops.Drain, request, or_default(timeout_s, self.timeout_s))).in_flight

    async def is_serving(self, timeout_s: float = 5.0) -> bool:
        """What the server itself says of its health. Raises LoraplexApiError if nothing answers."""
        try:
            return health.is_serving(await self._health(health.REQUEST, timeout=timeout_s))
        except grpc.RpcError as error:
            raise api_error(error) from None

    async def is_ready(self, timeout_s: float = 5.0) -> bool:
        """Whether the server serves now; False too if nothing answers."""
        try:
            return await self.is_serving(timeout_s)
        except LoraplexApiError as error:
            if health.may_become_ready(error.code):
                return False
            raise

    async def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Return as soon as the server serves. Raises UnavailableError after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while not await self.is_ready(min(5.0, max(0.1, deadline_s - time.monotonic()))):
            if time.monotonic() >= deadline_s:
                raise unreachable(timeout_s, self.target)
            await asyncio.sleep(health.POLL_S)


class AsyncCompletionStream(AsyncIterator[StreamEvent]):
    """Events of one completion. Leaving its `async with` block, or `cancel`, ends the request on the server too."""

    def __init__(
        self, method: Any, request: inference_pb2.StreamGenerateRequest, timeout_s: float | None
    ) -> None:
        self._method = method
        self._request = request
        self._budget = RetryBudget(timeout_s)
        self._has_begun = False
        self._call = method(request, timeout=self._budget.timeout_s)

    async def __aenter__(self) -> AsyncCompletionStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __anext__(self) -> StreamEvent:
        while True:
            try:
                message = await self._call.read()
            except grpc.RpcError as error:
                await self._reopen_after(api_error(error))
                continue
            if message is _END_OF_STREAM:
                raise StopAsyncIteration
            self._has_begun = True
            event = decode.stream_event(message)
            if event is not None:
                return event

    def cancel(self) -> None:
        """Give up; nothing happens if the stream is over."""
        self._call.cancel()

    async def _reopen_after(self, failure: LoraplexApiError) -> None:
        pause_s = None if self._has_begun else self._budget.pause_s(failure)
        if pause_s is None:
            raise failure from None
        await asyncio.sleep(pause_s)
        self._call = self._method(self._request, timeout=self._budget.timeout_s)
