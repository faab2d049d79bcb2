"""The asyncio client. Belongs to the event loop that it is used in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, Unpack

import grpc
import grpc.aio

from loraplex.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    ops_pb2,
    ops_pb2_grpc,
)
from loraplex_client import decode, health
from loraplex_client.client import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, not_ready
from loraplex_client.errors import LoraplexApiError, api_error
from loraplex_client.requests import (
    GenerateOptions,
    Messages,
    UploadProgress,
    check_upload_files,
    count_request,
    generate_request,
    upload_requests,
)
from loraplex_client.results import Adapter, Completion, ServerInfo, StreamEvent
from loraplex_client.retry import RetryBudget
from loraplex_client.service_config import channel_options

_Response = TypeVar("_Response")
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
        self.adapters = AsyncAdapterCalls(adapter_pb2_grpc.AdapterServiceStub(self._channel), timeout_s)

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
            await _call(self._inference.Generate, request, _or_default(timeout_s, self.timeout_s))
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
            self._inference.StreamGenerate, request, _or_default(timeout_s, self.timeout_s)
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
        response = await _call(self._inference.CountTokens, request, _or_default(timeout_s, self.timeout_s))
        return response.token_count

    async def server_info(self, timeout_s: float | None = None) -> ServerInfo:
        """Versions, base model, limits and load."""
        request = ops_pb2.GetServerInfoRequest()
        return decode.server_info(
            await _call(self._ops.GetServerInfo, request, _or_default(timeout_s, self.timeout_s))
        )

    async def drain(self, grace_s: float | None = None, timeout_s: float | None = None) -> int:
        """Stop the server once running requests have finished, or after `grace_s`. Returns their number."""
        request = ops_pb2.DrainRequest(grace_seconds=grace_s)
        return (await _call(self._ops.Drain, request, _or_default(timeout_s, self.timeout_s))).in_flight

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
                raise not_ready(self.target, timeout_s)
            await asyncio.sleep(health.POLL_S)


class AsyncAdapterCalls:
    """AdapterService; reached as `client.adapters`."""

    def __init__(self, stub: adapter_pb2_grpc.AdapterServiceAsyncStub, timeout_s: float | None) -> None:
        self._stub = stub
        self._timeout_s = timeout_s

    async def create(
        self, name: str, path: Path | str, *, validate_only: bool = False, timeout_s: float | None = None
    ) -> Adapter:
        """Register a folder of the server's machine, which must lie under one of its adapter_roots."""
        request = adapter_pb2.CreateAdapterRequest(name=name, path=str(path), validate_only=validate_only)
        response = await _call(self._stub.CreateAdapter, request, _or_default(timeout_s, self._timeout_s))
        return decode.adapter(response.adapter)

    async def upload(
        self,
        name: str,
        folder: Path | str,
        *,
        validate_only: bool = False,
        expected_digest: str = "",
        on_progress: UploadProgress | None = None,
        timeout_s: float | None = None,
    ) -> Adapter:
        """Register a PEFT folder of this machine. Raises FileNotFoundError if it is none."""
        source = Path(folder)
        await asyncio.to_thread(check_upload_files, source)
        chunks = upload_requests(
            name,
            source,
            validate_only=validate_only,
            expected_digest=expected_digest,
            on_progress=on_progress,
        )

        async def messages() -> AsyncIterator[adapter_pb2.UploadAdapterRequest]:
            while (message := await asyncio.to_thread(next, chunks, None)) is not None:
                yield message

        try:
            response = await self._stub.UploadAdapter(
                messages(), timeout=_or_default(timeout_s, self._timeout_s)
            )
        except grpc.RpcError as error:
            raise api_error(error) from None
        return decode.adapter(response.adapter)

    async def get(self, name: str, timeout_s: float | None = None) -> Adapter:
        request = adapter_pb2.GetAdapterRequest(name=name)
        response = await _call(self._stub.GetAdapter, request, _or_default(timeout_s, self._timeout_s))
        return decode.adapter(response.adapter)

    async def list(self, page_size: int = 0, timeout_s: float | None = None) -> AsyncIterator[Adapter]:
        """All adapters in order of name; pages are fetched as they are needed."""
        token = ""
        while True:
            request = adapter_pb2.ListAdaptersRequest(page_size=page_size, page_token=token)
            page = await _call(self._stub.ListAdapters, request, _or_default(timeout_s, self._timeout_s))
            for message in page.adapters:
                yield decode.adapter(message)
            token = page.next_page_token
            if not token:
                return

    async def delete(self, name: str, timeout_s: float | None = None) -> None:
        """New requests get NotFoundError at once; running ones finish."""
        request = adapter_pb2.DeleteAdapterRequest(name=name)
        await _call(self._stub.DeleteAdapter, request, _or_default(timeout_s, self._timeout_s))


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


async def _call(
    method: Callable[..., Awaitable[_Response]], request: object, timeout_s: float | None
) -> _Response:
    budget = RetryBudget(timeout_s)
    while True:
        try:
            return await method(request, timeout=budget.timeout_s)
        except grpc.RpcError as error:
            failure = api_error(error)
        pause_s = budget.pause_s(failure)
        if pause_s is None:
            raise failure
        await asyncio.sleep(pause_s)


def _or_default(timeout_s: float | None, default_s: float | None) -> float | None:
    return default_s if timeout_s is None else timeout_s
