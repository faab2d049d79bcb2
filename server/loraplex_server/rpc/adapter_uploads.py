"""Packages that clients send, message by message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from loraplex.v1 import adapter_pb2
from loraplex_adapters.errors import invalid
from loraplex_server.admission.upload import Upload
from loraplex_server.errors import DeadlineExceededError

Messages = AsyncIterator[adapter_pb2.UploadAdapterRequest]


class UploadReader:
    """Reads one client's stream; a client that falls silent is not waited for."""

    def __init__(self, messages: Messages, idle_timeout_s: float) -> None:
        self._messages = messages
        self._idle_timeout_s = idle_timeout_s

    async def header(self) -> adapter_pb2.UploadAdapterRequest.Header:
        """The first message. Raises InvalidRequestError, DeadlineExceededError."""
        first = await self._next()
        if first is None or first.WhichOneof("message") != "header":
            raise invalid("header", "the first message of an upload must carry the header")
        return first.header

    async def receive(self, upload: Upload) -> None:
        """Write every chunk to its place. Raises what `Upload.append` does, and DeadlineExceededError."""
        while (message := await self._next()) is not None:
            if message.WhichOneof("message") != "chunk":
                raise invalid("chunk", "every message after the first must carry a chunk")
            chunk = message.chunk
            await asyncio.to_thread(upload.append, chunk.file_name, chunk.offset, chunk.data)

    async def _next(self) -> adapter_pb2.UploadAdapterRequest | None:
        """The next message; None at the end."""
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await anext(self._messages, None)
        except TimeoutError:
            raise DeadlineExceededError(
                f"no message of the upload came for {self._idle_timeout_s:g} s"
            ) from None
