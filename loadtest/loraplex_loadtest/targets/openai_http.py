"""Any OpenAI-compatible HTTP server that streams: /v1/completions and /v1/chat/completions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from loraplex_loadtest.errors import TargetUnreadyError
from loraplex_loadtest.targets.target import Question, Sink, TargetAddress

_STATUS_OF = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""gRPC's words for HTTP's, so that errors of all targets are counted in the same table."""
_DATA = b"data:"


class OpenAiConnection:
    """One pool of HTTP connections. Names adapters as models, as vLLM does."""

    def __init__(self, address: TargetAddress) -> None:
        self._address = address
        # A stream holds its HTTP/1 connection: a limit here would be a queue that nobody sees.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=dict(address.headers),
            # The request's own deadline is the only one; aiohttp's is five minutes.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        )

    @property
    def timeout(self) -> aiohttp.ClientTimeout:
        """What ends a request besides its deadline."""
        return self._session.timeout

    async def open(self) -> None:
        """HTTP/1 connects with each stream."""

    def prepare(self, question: Question) -> tuple[str, bytes]:
        sampling = question.sampling.model_dump(exclude_none=True)
        stream_options: dict[str, Any] = {"include_usage": True}
        if self._address.continuous_usage:
            stream_options["continuous_usage_stats"] = True
        body: dict[str, Any] = {
            "model": question.adapter or self._address.model,
            "max_tokens": question.max_tokens,
            "stream": True,
            "stream_options": stream_options,
            **sampling,
        }
        if question.ignore_eos:  # no part of OpenAI's own API; servers for load tests know it
            body["ignore_eos"] = True
        if question.is_chat:
            body["messages"] = [{"role": "user", "content": question.text}]
        else:
            body["prompt"] = question.text
        path = "/v1/chat/completions" if question.is_chat else "/v1/completions"
        return self._address.address.rstrip("/") + path, json.dumps(body).encode()

    async def ask(self, prepared: tuple[str, bytes], deadline_s: float, sink: Sink) -> None:
        url, body = prepared
        try:
            async with asyncio.timeout(deadline_s):
                async with self._session.post(
                    url, data=body, headers={"content-type": "application/json"}
                ) as response:
                    if response.status != 200:
                        status = _STATUS_OF.get(response.status, "INTERNAL")
                        sink.failed(status, f"HTTP_{response.status}", _retry_after_s(response))
                        return
                    await self._read(response, sink)
        except TimeoutError:
            sink.failed("DEADLINE_EXCEEDED", "")
        except aiohttp.ClientError:
            sink.failed("UNAVAILABLE", "")
        except (ValueError, KeyError, TypeError, AttributeError):
            sink.failed("INTERNAL", "STREAM_UNREADABLE")

    async def _read(self, response: aiohttp.ClientResponse, sink: Sink) -> None:
        counted, was_told, has_finished = 0, False, False
        async for line in response.content:
            if not line.startswith(_DATA):
                continue
            data = line[len(_DATA) :].strip()
            if data == b"[DONE]":
                if not was_told:
                    sink.completed()
                return
            event = json.loads(data)
            if "error" in event:
                sink.failed("INTERNAL", "STREAM_ERROR")
                return
            usage = event.get("usage")
            text = _text(event)
            has_finished = has_finished or _has_finished(event)
            # Without a running count, a piece of text is one token.
            new = usage["completion_tokens"] - counted if usage and text else int(bool(text))
            if new > 0:
                counted += new
                if not sink.tokens(new):
                    return
                await sink.pause()
            if usage and not event.get("choices"):
                sink.counted(usage["prompt_tokens"], usage["completion_tokens"])
                was_told = True
        if not was_told:  # the stream was closed without [DONE]
            if has_finished:
                sink.completed()
            else:
                sink.failed("UNAVAILABLE", "STREAM_CUT")

    async def close(self) -> None:
        await self._session.close()


class OpenAiInspector:
    """/v1/models: the base and its adapters."""

    def __init__(self, address: TargetAddress) -> None:
        self._address = address

    async def describe(self) -> dict[str, Any]:
        return {"models": await self._models()}

    async def adapters(self) -> list[str]:
        return [name for name in await self._models() if name != self._address.model]

    async def overhead_tokens(self, is_chat: bool, text: str, num_tokens: int) -> int:
        return 0

    async def close(self) -> None:
        """Each call has a session of its own."""

    async def _models(self) -> list[str]:
        url = self._address.address.rstrip("/") + "/v1/models"
        timeout = aiohttp.ClientTimeout(total=10)
        try:
            async with (
                aiohttp.ClientSession(headers=dict(self._address.headers), timeout=timeout) as session,
                session.get(url) as response,
            ):
                if response.status != 200:
                    raise TargetUnreadyError(f"{url} answers with {response.status}")
                document = await response.json()
        except (aiohttp.ClientError, TimeoutError):
            raise TargetUnreadyError(f"no server answers at {self._address.address}") from None
        return [str(model["id"]) for model in document.get("data", [])]


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """None where the server does not say, or gives a date."""
    told = response.headers.get("retry-after", "")
    return float(told) if told.isdecimal() else None


def _has_finished(event: dict[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in event.get("choices") or ())


def _text(event: dict[str, Any]) -> str:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        return choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""
    return ""
