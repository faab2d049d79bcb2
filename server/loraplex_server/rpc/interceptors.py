"""What surrounds every RPC: a request id, an access log line, and the translation of errors into statuses.

Two of the faults it closes are grpcio's own: an exception in a handler, and bytes that do not parse, would otherwise
reach the client as UNKNOWN with the exception's text.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

from loraplex_adapters.errors import LoraplexError
from loraplex_server.metrics import Metrics
from loraplex_server.rpc.grpc_types import Context, Handler
from loraplex_server.rpc.status import internal_status, malformed_status, rich_status, status_code

log = logging.getLogger(__name__)

request_id_var: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the RPC that the current task serves; drawn by the server."""


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a request that did not parse."""


_MALFORMED = _Malformed()


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Outermost: nothing but documented statuses gets past it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:  # unknown method: grpc answers UNIMPLEMENTED
            return handler
        method = handler_call_details.method.rsplit("/", 1)[-1]
        deserializer = _safe(handler.request_deserializer)
        if handler.response_streaming:
            streaming = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrap = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else (grpc.unary_stream_rpc_method_handler)
            )
            return wrap(self._guard_stream(method, streaming), deserializer, handler.response_serializer)
        unary = handler.stream_unary if handler.request_streaming else handler.unary_unary
        wrap = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else (grpc.unary_unary_rpc_method_handler)
        )
        return wrap(self._guard_unary(method, unary), deserializer, handler.response_serializer)

    def _guard_unary(self, method: str, behaviour: Any) -> Any:
        async def guarded(request: Any, context: Context) -> Any:
            with _Call(method, self._metrics) as call:
                if request is _MALFORMED:
                    await call.abort(context, malformed_status(call.request_id), "MALFORMED_MESSAGE")
                try:
                    return await behaviour(_checked(request), context)
                except Exception as error:
                    await call.abort_for(context, error)

        return guarded

    def _guard_stream(self, method: str, behaviour: Any) -> Any:
        async def guarded(request: Any, context: Context) -> None:
            with _Call(method, self._metrics) as call:
                if request is _MALFORMED:
                    await call.abort(context, malformed_status(call.request_id), "MALFORMED_MESSAGE")
                try:
                    result = behaviour(_checked(request), context)
                    if isinstance(result, AsyncIterator):
                        async for message in result:
                            await context.write(message)
                    else:
                        await result
                except Exception as error:
                    await call.abort_for(context, error)

        return guarded


class _MalformedRequest(Exception):
    """A message of a client stream did not parse."""


class _Call:
    """One RPC: its id while it runs, its line in the log when it ends."""

    def __init__(self, method: str, metrics: Metrics) -> None:
        self._method = method
        self._metrics = metrics
        self._started_s = time.monotonic()
        self._code = "OK"
        self.request_id = uuid.uuid4().hex

    def __enter__(self) -> _Call:
        request_id_var.set(self.request_id)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._code == "OK" and kind is not None:
            self._code = "CANCELLED"
        seconds = time.monotonic() - self._started_s
        self._metrics.rpc_ended(self._method, self._code, seconds)
        log.debug(
            "rpc ended",
            extra={
                "method": self._method,
                "code": self._code,
                "seconds": seconds,
                "request_id": self.request_id,
            },
        )

    async def abort(self, context: Context, status: Any, reason: str) -> None:
        self._code = status.code.name
        self._metrics.rejected(reason)
        try:
            await context.abort_with_status(status)
        except grpc.aio.InternalError:  # the caller has gone, by its own deadline most likely: nobody to tell
            raise asyncio.CancelledError from None

    async def abort_for(self, context: Context, error: Exception) -> None:
        """End the RPC with the status of `error`; an abort by the service itself passes through."""
        if isinstance(error, grpc.aio.AbortError):
            self._code = _code_name(context.code())
            raise error
        if isinstance(error, LoraplexError):
            if status_code(error) is grpc.StatusCode.INTERNAL:
                log.error("request failed", extra={"request_id": self.request_id, "reason": error.reason})
            await self.abort(context, rich_status(error, self.request_id), error.reason)
        elif isinstance(error, _MalformedRequest):
            await self.abort(context, malformed_status(self.request_id), "MALFORMED_MESSAGE")
        else:
            log.error("unexpected error in a handler", exc_info=error, extra={"request_id": self.request_id})
            await self.abort(context, internal_status(self.request_id), "INTERNAL")


def _code_name(code: grpc.StatusCode | int) -> str:
    """aio's contexts give the enumeration or its number, depending on who set it."""
    return next((known.name for known in grpc.StatusCode if code in (known, known.value[0])), "UNKNOWN")


def _safe(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Parsing that cannot raise: grpcio parses outside of what an interceptor can guard."""
    if deserializer is None:
        return None
    parse = deserializer

    def parse_or_mark(data: bytes) -> Any:
        try:
            return parse(data)
        except Exception:
            return _MALFORMED

    return parse_or_mark


def _checked(request: Any) -> Any:
    """A client stream is checked message by message; a single request was checked already."""
    return _parsed_messages(request) if isinstance(request, AsyncIterator) else request


async def _parsed_messages(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is _MALFORMED:
            raise _MalformedRequest
        yield request
