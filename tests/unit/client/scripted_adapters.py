"""AdapterService as a script: remembers what it was asked, keeps uploads, breaks off as told."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from tests.unit.client.faults import Fault, abort, error_info

if TYPE_CHECKING:
    from tests.unit.client.scripted_server import ScriptedServer

STABLE_DIGEST = "a" * 64
CANARY_DIGEST = "b" * 64
CREATED = Timestamp(seconds=1_700_000_000, nanos=500_000_000)


@dataclass
class Adapters:
    """What happened to AdapterService, and what is to happen."""

    num_listed: int = 0
    requests: list[Message] = field(default_factory=list)  # unary ones, in order
    uploads: list[list[adapter_pb2.UploadAdapterRequest]] = field(
        default_factory=list
    )  # messages of each call
    break_after_chunks: list[int] = field(default_factory=list)  # of the next uploads; then they succeed
    busy_uploads: int = 0  # so many calls after a break still find the lost one running
    received: dict[str, dict[str, bytearray]] = field(default_factory=dict)  # by upload_id and file
    foreign_uploads: set[str] = field(default_factory=set)  # ids of uploads of other adapters
    events: list[adapter_pb2.WatchAdaptersResponse] = field(default_factory=list)
    watch_tokens: list[str] = field(default_factory=list)  # of each call
    watch_faults: list[Fault] = field(
        default_factory=list
    )  # ends of the next calls, after `after_events` each
    watch_stays_open: bool = False  # after the events, until the caller leaves
    watch_ended: threading.Event = field(default_factory=threading.Event)

    def request(self, kind: type[Message]) -> Any:
        """The only one of its kind."""
        (found,) = (request for request in self.requests if isinstance(request, kind))
        return found


def version(digest: str = STABLE_DIGEST, tier: Any = adapter_pb2.Residency.TIER_SLOT) -> adapter_pb2.Version:
    return adapter_pb2.Version(
        digest=digest,
        state=adapter_pb2.Version.STATE_READY,
        size_bytes=3 * 2**20,
        rank=16,
        target_modules=["k_proj", "q_proj"],
        served_module_count=8,
        base_fingerprint="c" * 64,
        template_hash="d" * 64,
        source="upload",
        create_time=CREATED,
        residency=adapter_pb2.Residency(
            tier=tier, read_seconds=0.25, copy_seconds=0.125, activate_time=CREATED
        )
        if tier == adapter_pb2.Residency.TIER_SLOT
        else adapter_pb2.Residency(tier=tier),
    )


def adapter(name: str = "tenants/default/adapters/shop", **changes: Any) -> adapter_pb2.Adapter:
    """An adapter of two versions with a split, a shadow and labels."""
    fields: dict[str, Any] = {
        "digest": STABLE_DIGEST,
        "versions": [version(CANARY_DIGEST, adapter_pb2.Residency.TIER_DISK), version()],
        "aliases": {"stable": STABLE_DIGEST, "canary": CANARY_DIGEST},
        "traffic": [
            adapter_pb2.TrafficShare(target="stable", weight=90),
            adapter_pb2.TrafficShare(target="canary", weight=10),
        ],
        "shadow": adapter_pb2.Shadow(target="canary", percent=5, compared=7, equal=6, dropped=1),
        "pinned": True,
        "labels": {"team": "search"},
        "etag": "17",
        "create_time": CREATED,
        "update_time": CREATED,
    }
    return adapter_pb2.Adapter(name=name, **{**fields, **changes})


def event(number: int) -> adapter_pb2.WatchAdaptersResponse:
    return adapter_pb2.WatchAdaptersResponse(
        event=adapter_pb2.AdapterEvent(
            kind=adapter_pb2.AdapterEvent.KIND_PROMOTED,
            name=f"tenants/default/adapters/a{number}",
            digest=STABLE_DIGEST,
            alias="stable",
            time=CREATED,
        ),
        resume_token=str(number),
    )


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """Every call takes the server's next fault first."""

    def __init__(self, script: ScriptedServer) -> None:
        self._script = script
        self._adapters = script.adapters

    def CreateAdapter(self, request: adapter_pb2.CreateAdapterRequest, context: Any) -> Any:
        self._enter(request, context)
        return adapter_pb2.CreateAdapterResponse(adapter=adapter(), version=version())

    def UploadAdapter(
        self, request_iterator: Iterator[adapter_pb2.UploadAdapterRequest], context: Any
    ) -> Any:
        self._script.fail_if_told(context)
        if self._adapters.uploads and self._adapters.busy_uploads:
            self._adapters.busy_uploads -= 1
            abort(context, Fault(grpc.StatusCode.ABORTED, details=(error_info("UPLOAD_IN_USE"),)))
        messages: list[adapter_pb2.UploadAdapterRequest] = []
        self._adapters.uploads.append(messages)
        chunks_left = self._adapters.break_after_chunks.pop(0) if self._adapters.break_after_chunks else None
        files: dict[str, bytearray] = {}
        for message in request_iterator:
            messages.append(message)
            if message.HasField("header"):
                files = self._files_of(message.header, context)
                continue
            file = files.setdefault(message.chunk.file_name, bytearray())
            if message.chunk.offset != len(file):
                abort(context, Fault(grpc.StatusCode.INVALID_ARGUMENT, "offset"))
            file += message.chunk.data
            if chunks_left is not None:
                chunks_left -= 1
                if not chunks_left:
                    abort(context, Fault(grpc.StatusCode.UNAVAILABLE, "broken off"))
        return adapter_pb2.UploadAdapterResponse(adapter=adapter(), version=version())

    def _files_of(
        self, header: adapter_pb2.UploadAdapterRequest.Header, context: Any
    ) -> dict[str, bytearray]:
        """What the upload has, proved to be of the same files as a server has it proved."""
        if not header.upload_id:
            return {}
        if header.start_over:
            self._adapters.received.pop(header.upload_id, None)
        files = self._adapters.received.setdefault(header.upload_id, {})
        kept = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        if header.upload_id in self._adapters.foreign_uploads or dict(header.received_sha256) != kept:
            abort(
                context, Fault(grpc.StatusCode.FAILED_PRECONDITION, details=(error_info("UPLOAD_MISMATCH"),))
            )
        return files

    def GetUpload(self, request: adapter_pb2.GetUploadRequest, context: Any) -> Any:
        self._enter(request, context)
        files = self._adapters.received.get(request.upload_id)
        if files is None:
            abort(context, Fault(grpc.StatusCode.NOT_FOUND, details=(error_info("UPLOAD_NOT_FOUND"),)))
        return adapter_pb2.GetUploadResponse(received_bytes={name: len(data) for name, data in files.items()})

    def GetAdapter(self, request: adapter_pb2.GetAdapterRequest, context: Any) -> Any:
        return self._changed(adapter_pb2.GetAdapterResponse, request, context)

    def ListAdapters(self, request: adapter_pb2.ListAdaptersRequest, context: Any) -> Any:
        self._enter(request, context)
        first = int(request.page_token or 0)
        last = min(first + (request.page_size or 100), self._adapters.num_listed)
        return adapter_pb2.ListAdaptersResponse(
            adapters=[adapter(f"tenants/default/adapters/a{index}") for index in range(first, last)],
            next_page_token=str(last) if last < self._adapters.num_listed else "",
        )

    def UpdateAdapter(self, request: adapter_pb2.UpdateAdapterRequest, context: Any) -> Any:
        return self._changed(adapter_pb2.UpdateAdapterResponse, request, context)

    def PromoteVersion(self, request: adapter_pb2.PromoteVersionRequest, context: Any) -> Any:
        return self._changed(adapter_pb2.PromoteVersionResponse, request, context)

    def RollbackAlias(self, request: adapter_pb2.RollbackAliasRequest, context: Any) -> Any:
        return self._changed(adapter_pb2.RollbackAliasResponse, request, context)

    def DeleteAlias(self, request: adapter_pb2.DeleteAliasRequest, context: Any) -> Any:
        return self._changed(adapter_pb2.DeleteAliasResponse, request, context)

    def SplitTraffic(self, request: adapter_pb2.SplitTrafficRequest, context: Any) -> Any:
        return self._changed(adapter_pb2.SplitTrafficResponse, request, context)

    def SetShadow(self, request: adapter_pb2.SetShadowRequest, context: Any) -> Any:
        return self._changed(adapter_pb2.SetShadowResponse, request, context)

    def PinAdapter(self, request: adapter_pb2.PinAdapterRequest, context: Any) -> Any:
        return self._changed(adapter_pb2.PinAdapterResponse, request, context)

    def WarmVersion(self, request: adapter_pb2.WarmVersionRequest, context: Any) -> Any:
        self._enter(request, context)
        return adapter_pb2.WarmVersionResponse(versions=[version()])

    def DeprecateVersion(self, request: adapter_pb2.DeprecateVersionRequest, context: Any) -> Any:
        return self._changed(adapter_pb2.DeprecateVersionResponse, request, context)

    def DeleteVersion(self, request: adapter_pb2.DeleteVersionRequest, context: Any) -> Any:
        return self._changed(adapter_pb2.DeleteVersionResponse, request, context)

    def DeleteAdapter(self, request: adapter_pb2.DeleteAdapterRequest, context: Any) -> Any:
        self._enter(request, context)
        return adapter_pb2.DeleteAdapterResponse()

    def WatchAdapters(self, request: adapter_pb2.WatchAdaptersRequest, context: Any) -> Any:
        self._enter(request, context)
        self._adapters.watch_tokens.append(request.resume_token)
        context.add_callback(self._adapters.watch_ended.set)
        fault = self._adapters.watch_faults.pop(0) if self._adapters.watch_faults else None
        behind = [
            each for each in self._adapters.events if int(each.resume_token) > int(request.resume_token or 0)
        ]
        for number, each in enumerate(behind):
            if fault is not None and number == fault.after_events:
                break
            yield each
        while self._adapters.watch_stays_open and context.is_active():
            self._adapters.watch_ended.wait(0.02)
        if fault is not None:
            abort(context, fault)

    def PlanAdapters(self, request: adapter_pb2.PlanAdaptersRequest, context: Any) -> Any:
        self._enter(request, context)
        group = adapter_pb2.PlanAdaptersResponse.Group(
            bytes_each=2**20, resident_alone=9, fits=True, step_bytes_share=0.01
        )
        return adapter_pb2.PlanAdaptersResponse(
            groups=[group] * len(request.groups),
            resident_together=8,
            arena_bytes=2**24,
            adapter_slots=8,
            host_cache_bytes=2**30,
            load_seconds=0.5,
        )

    def _enter(self, request: Message, context: Any) -> None:
        self._adapters.requests.append(request)
        self._script.fail_if_told(context)

    def _changed(self, response: Any, request: Any, context: Any) -> Any:
        self._enter(request, context)
        return response(adapter=adapter())
