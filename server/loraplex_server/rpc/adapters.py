"""AdapterService: register, show, list and delete adapters."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from pathlib import Path

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_adapters.errors import FieldViolation, InvalidRequestError
from loraplex_adapters.names import validate_adapter_name
from loraplex_adapters.storage_faults import disk_faults
from loraplex_server.adapter_directory import AdapterDirectory, remove_staging
from loraplex_server.engine_client import EngineClient
from loraplex_server.errors import DeadlineExceededError, UploadTooLargeError
from loraplex_server.rpc import convert
from loraplex_server.rpc.grpc_types import Context
from loraplex_server.rpc.serving import Serving

MAX_CHUNK_BYTES = 1 << 20
_FILE_NAMES = ("adapter_config.json", "adapter_model.safetensors")
_DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE = 100, 1000
_PAGE_TOKEN_PREFIX = b"adapters:"


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """The directory does the work; this speaks for it."""

    def __init__(
        self, serving: Serving, engine: EngineClient, max_adapter_bytes: int, upload_idle_timeout_s: float
    ) -> None:
        """`upload_idle_timeout_s` bounds the time between two messages of an upload."""
        self._serving = serving
        self._engine = engine
        self._max_adapter_bytes = max_adapter_bytes
        self._upload_idle_timeout_s = upload_idle_timeout_s

    @property
    def _directory(self) -> AdapterDirectory:
        return self._serving.parts().directory

    async def CreateAdapter(
        self, request: adapter_pb2.CreateAdapterRequest, context: Context
    ) -> adapter_pb2.CreateAdapterResponse:
        adapter = await self._directory.create_from_folder(
            request.name, request.path, validate_only=request.validate_only
        )
        return adapter_pb2.CreateAdapterResponse(adapter=convert.adapter_message(adapter, is_resident=False))

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[adapter_pb2.UploadAdapterRequest], context: Context
    ) -> adapter_pb2.UploadAdapterResponse:
        directory = self._directory
        header = await self._header(request_iterator)
        folder = await asyncio.to_thread(directory.staging_folder)
        try:
            await self._receive(request_iterator, folder)
            adapter = await directory.create(
                header.name,
                folder,
                validate_only=header.validate_only,
                expected_digest=header.expected_digest.lower(),
            )
        finally:
            await asyncio.shield(asyncio.to_thread(remove_staging, folder))
        return adapter_pb2.UploadAdapterResponse(adapter=convert.adapter_message(adapter, is_resident=False))

    async def GetAdapter(
        self, request: adapter_pb2.GetAdapterRequest, context: Context
    ) -> adapter_pb2.GetAdapterResponse:
        adapter = self._directory.get(request.name)
        resident = self._engine.tiers.get(adapter.digest) == "slot"
        return adapter_pb2.GetAdapterResponse(adapter=convert.adapter_message(adapter, is_resident=resident))

    async def ListAdapters(
        self, request: adapter_pb2.ListAdaptersRequest, context: Context
    ) -> adapter_pb2.ListAdaptersResponse:
        if request.page_size > _MAX_PAGE_SIZE:
            raise _invalid("page_size", f"must be at most {_MAX_PAGE_SIZE}")
        page_size = request.page_size or _DEFAULT_PAGE_SIZE
        # One more than a page tells whether there is another.
        adapters = self._directory.list_page(page_size + 1, _after_name(request.page_token))
        tiers = self._engine.tiers
        return adapter_pb2.ListAdaptersResponse(
            adapters=[
                convert.adapter_message(adapter, is_resident=tiers.get(adapter.digest) == "slot")
                for adapter in adapters[:page_size]
            ],
            next_page_token=_page_token(adapters[page_size - 1].name) if len(adapters) > page_size else "",
        )

    async def DeleteAdapter(
        self, request: adapter_pb2.DeleteAdapterRequest, context: Context
    ) -> adapter_pb2.DeleteAdapterResponse:
        await self._directory.delete(request.name)
        return adapter_pb2.DeleteAdapterResponse()

    async def _header(
        self, requests: AsyncIterator[adapter_pb2.UploadAdapterRequest]
    ) -> adapter_pb2.UploadAdapterRequest.Header:
        first = await self._next(requests)
        if first is None or first.WhichOneof("message") != "header":
            raise _invalid("header", "the first message of an upload must carry the header")
        validate_adapter_name(first.header.name)  # before megabytes are taken in
        return first.header

    async def _receive(self, requests: AsyncIterator[adapter_pb2.UploadAdapterRequest], folder: Path) -> None:
        """Write the chunks of both files, each in order of offset, within the byte budget."""
        written: dict[str, int] = {}
        while (message := await self._next(requests)) is not None:
            chunk = message.chunk
            if message.WhichOneof("message") != "chunk":
                raise _invalid("chunk", "every message after the first must carry a chunk")
            if chunk.file_name not in _FILE_NAMES:
                raise _invalid("chunk.file_name", f"must be one of {', '.join(_FILE_NAMES)}")
            if not 1 <= len(chunk.data) <= MAX_CHUNK_BYTES:
                raise _invalid("chunk.data", f"must have 1 to {MAX_CHUNK_BYTES} bytes")
            expected = written.get(chunk.file_name, 0)
            if chunk.offset != expected:
                raise _invalid(
                    "chunk.offset", f"is {chunk.offset}, expected {expected}; send pieces in order"
                )
            written[chunk.file_name] = expected + len(chunk.data)
            if sum(written.values()) > self._max_adapter_bytes:
                raise UploadTooLargeError(
                    f"the upload is larger than {self._max_adapter_bytes} bytes, the limit"
                )
            await asyncio.to_thread(_append, folder / chunk.file_name, chunk.data)

    async def _next(
        self, requests: AsyncIterator[adapter_pb2.UploadAdapterRequest]
    ) -> adapter_pb2.UploadAdapterRequest | None:
        """The next message; None at the end. Raises DeadlineExceededError when the client falls silent."""
        idle_s = self._upload_idle_timeout_s
        try:
            async with asyncio.timeout(idle_s):
                return await anext(requests, None)
        except TimeoutError:
            raise DeadlineExceededError(f"no message of the upload came for {idle_s:g} s") from None


def _append(path: Path, data: bytes) -> None:
    with disk_faults(), path.open("ab") as file:
        file.write(data)


def _page_token(name: str) -> str:
    return base64.urlsafe_b64encode(_PAGE_TOKEN_PREFIX + name.encode()).decode()


def _after_name(token: str) -> str:
    if not token:
        return ""
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii"))
        if raw.startswith(_PAGE_TOKEN_PREFIX):
            return raw.removeprefix(_PAGE_TOKEN_PREFIX).decode()
    except (binascii.Error, UnicodeError, ValueError):
        pass  # answered below like any other token that is not ours
    raise _invalid("page_token", "is not a token that this server gave out")


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, description)])
