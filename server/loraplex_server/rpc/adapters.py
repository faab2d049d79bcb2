"""AdapterService: register, show, release and remove adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from loraplex.v1 import adapter_pb2 as pb
from loraplex.v1 import adapter_pb2_grpc
from loraplex_adapters.errors import invalid
from loraplex_adapters.filters import AdapterFilter
from loraplex_adapters.names import (
    STABLE,
    AdapterName,
    AdapterReference,
    parse_alias,
    parse_digest,
    parse_target,
)
from loraplex_adapters.releases import Adapter, Shadow
from loraplex_server.admission.url_policy import source_label
from loraplex_server.releases.plan import plan_adapters
from loraplex_server.releases.registration import Registered
from loraplex_server.releases.service import Releases
from loraplex_server.rpc import adapter_messages as messages
from loraplex_server.rpc.adapter_uploads import UploadReader
from loraplex_server.rpc.grpc_types import Context
from loraplex_server.rpc.serving import Serving
from loraplex_server.rpc.stall_guard import StallGuard

_DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE = 100, 1000


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """The releases do the work; this speaks for them."""

    def __init__(self, serving: Serving, upload_idle_timeout_s: float, write_stall_timeout_s: float) -> None:
        """Seconds that a client may be silent in an upload, and leave a watch unread."""
        self._serving = serving
        self._upload_idle_timeout_s = upload_idle_timeout_s
        self._write_stall_timeout_s = write_stall_timeout_s

    @property
    def _releases(self) -> Releases:
        return self._serving.parts().releases

    async def CreateAdapter(
        self, request: pb.CreateAdapterRequest, context: Context
    ) -> pb.CreateAdapterResponse:
        releases = self._releases
        match request.WhichOneof("source"):
            case "path":
                registration = messages.registration_request(request.registration, "folder")
                registered = await releases.register_folder(registration, request.path)
            case "url":
                registration = messages.registration_request(request.registration, source_label(request.url))
                registered = await releases.register_url(registration, request.url)
            case _:
                raise invalid("source", "set exactly one of path and url")
        adapter, version = self._registered(registered)
        return pb.CreateAdapterResponse(adapter=adapter, version=version)

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[pb.UploadAdapterRequest], context: Context
    ) -> pb.UploadAdapterResponse:
        releases = self._releases
        reader = UploadReader(request_iterator, self._upload_idle_timeout_s)
        header = await reader.header()
        registration = messages.registration_request(
            header.registration, "upload"
        )  # before megabytes are taken in
        async with releases.upload(messages.upload_claim(header, registration)) as upload:
            await reader.receive(upload)
            registered = await releases.registrar.register(registration, upload.folder)
        adapter, version = self._registered(registered)
        return pb.UploadAdapterResponse(adapter=adapter, version=version)

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        return pb.GetUploadResponse(received_bytes=await self._releases.received(request.upload_id))

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.GetAdapterResponse:
        directory = self._releases.directory
        adapter = await directory.get(AdapterName.parse(request.name))
        return pb.GetAdapterResponse(adapter=self._message(adapter))

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: Context
    ) -> pb.ListAdaptersResponse:
        registry = self._releases.directory.registry
        if request.page_size > _MAX_PAGE_SIZE:
            raise invalid("page_size", f"must be at most {_MAX_PAGE_SIZE}")
        page_size = request.page_size or _DEFAULT_PAGE_SIZE
        tenant, name = messages.scope(request.parent)
        if name is not None:
            raise invalid("parent", "must be tenants/TENANT or empty")
        adapters = await asyncio.to_thread(
            registry.list_page,
            page_size + 1,  # one more than a page tells whether there is another
            messages.name_before_page(request.page_token),
            tenant,
            AdapterFilter.parse(request.filter),
        )
        page = adapters[:page_size]
        return pb.ListAdaptersResponse(
            adapters=[self._message(adapter) for adapter in page],
            next_page_token=messages.page_token(page[-1].name) if len(adapters) > page_size else "",
        )

    async def UpdateAdapter(
        self, request: pb.UpdateAdapterRequest, context: Context
    ) -> pb.UpdateAdapterResponse:
        registry = self._releases.directory.registry
        adapter = await self._change(request, partial(registry.update_labels, labels=dict(request.labels)))
        return pb.UpdateAdapterResponse(adapter=adapter)

    async def PromoteVersion(
        self, request: pb.PromoteVersionRequest, context: Context
    ) -> pb.PromoteVersionResponse:
        registry = self._releases.directory.registry
        target = parse_target(request.version, "version")
        write = partial(registry.promote, target=target, alias=parse_alias(request.alias or STABLE))
        return pb.PromoteVersionResponse(adapter=await self._change(request, write))

    async def RollbackAlias(
        self, request: pb.RollbackAliasRequest, context: Context
    ) -> pb.RollbackAliasResponse:
        registry = self._releases.directory.registry
        write = partial(registry.rollback, alias=parse_alias(request.alias or STABLE))
        return pb.RollbackAliasResponse(adapter=await self._change(request, write))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> pb.DeleteAliasResponse:
        registry = self._releases.directory.registry
        write = partial(registry.delete_alias, alias=parse_alias(request.alias))
        return pb.DeleteAliasResponse(adapter=await self._change(request, write))

    async def SplitTraffic(
        self, request: pb.SplitTrafficRequest, context: Context
    ) -> pb.SplitTrafficResponse:
        registry = self._releases.directory.registry
        write = partial(registry.split, traffic=messages.traffic_shares(request.traffic))
        return pb.SplitTrafficResponse(adapter=await self._change(request, write))

    async def SetShadow(self, request: pb.SetShadowRequest, context: Context) -> pb.SetShadowResponse:
        registry = self._releases.directory.registry
        shadow = None
        if request.target:
            shadow = Shadow(parse_target(request.target, "target"), request.percent or 100)
        write = partial(registry.set_shadow, shadow=shadow)
        return pb.SetShadowResponse(adapter=await self._change(request, write))

    async def PinAdapter(self, request: pb.PinAdapterRequest, context: Context) -> pb.PinAdapterResponse:
        registry = self._releases.directory.registry
        # One slot stays for the adapters that are not pinned.
        max_pinned = self._serving.parts().ready.adapter_slots - 1
        write = partial(registry.set_pinned, is_pinned=request.pinned, max_pinned=max_pinned)
        return pb.PinAdapterResponse(adapter=await self._change(request, write))

    async def WarmVersion(self, request: pb.WarmVersionRequest, context: Context) -> pb.WarmVersionResponse:
        releases = self._releases
        reference = AdapterReference.parse(request.adapter)
        versions = await releases.warm(reference, context.time_remaining())
        view = releases.residency
        return pb.WarmVersionResponse(
            versions=[messages.version_message(version, view.of(version.digest)) for version in versions]
        )

    async def DeprecateVersion(
        self, request: pb.DeprecateVersionRequest, context: Context
    ) -> pb.DeprecateVersionResponse:
        registry = self._releases.directory.registry
        write = partial(
            registry.deprecate, target=parse_digest(request.version, "version"), undo=request.undo
        )
        return pb.DeprecateVersionResponse(adapter=await self._change(request, write))

    async def DeleteVersion(
        self, request: pb.DeleteVersionRequest, context: Context
    ) -> pb.DeleteVersionResponse:
        registry = self._releases.directory.registry
        write = partial(registry.delete_version, target=parse_digest(request.version, "version"))
        return pb.DeleteVersionResponse(adapter=await self._change(request, write))

    async def DeleteAdapter(
        self, request: pb.DeleteAdapterRequest, context: Context
    ) -> pb.DeleteAdapterResponse:
        directory = self._releases.directory
        name = AdapterName.parse(request.name)
        once = messages.once(request)
        await directory.delete(name, partial(directory.registry.delete, name, etag=request.etag, once=once))
        return pb.DeleteAdapterResponse()

    async def WatchAdapters(  # type: ignore[override]  # writes to the context, to notice a client that does not read
        self, request: pb.WatchAdaptersRequest, context: Context
    ) -> None:
        releases = self._releases
        tenant, name = messages.scope(request.parent)
        # Not the one followed here: what was committed a moment ago lies before "from now on".
        newest = await asyncio.to_thread(releases.registry.revision)
        after = messages.resume_revision(request.resume_token, newest)
        with StallGuard(self._write_stall_timeout_s) as guard:
            await context.send_initial_metadata(())  # so that the client knows that it watches
            async for event in releases.watch(after, tenant, name):
                await guard.write(context, messages.event_message(event))

    async def PlanAdapters(
        self, request: pb.PlanAdaptersRequest, context: Context
    ) -> pb.PlanAdaptersResponse:
        parts = self._serving.parts()
        ready, releases = parts.ready, parts.releases
        plan = plan_adapters(
            messages.plan_groups(request.groups, releases.max_lora_rank),
            releases.spec,
            arena_bytes=ready.adapter_arena_bytes,
            element_bytes=ready.adapter_element_bytes,
            adapter_slots=ready.adapter_slots,
            base_bytes=ready.weight_bytes,
        )
        return messages.plan_message(
            plan,
            arena_bytes=ready.adapter_arena_bytes,
            adapter_slots=ready.adapter_slots,
            host_cache_bytes=ready.host_cache_bytes,
            load_s=releases.residency.slowest_load_s,
        )

    async def _change(self, request: Any, write: Callable[..., Adapter]) -> pb.Adapter:
        """Carry out a registry write for a request that has `name`, `etag` and `request_id`."""
        directory = self._releases.directory
        name = AdapterName.parse(request.name)
        once = messages.once(request)
        adapter = await directory.change(partial(write, name, etag=request.etag, once=once))
        return self._message(adapter)

    def _message(self, adapter: Adapter) -> pb.Adapter:
        releases = self._releases
        return messages.adapter_message(adapter, releases.residency, releases.shadows.counts(adapter.name))

    def _registered(self, registered: Registered) -> tuple[pb.Adapter, pb.Version]:
        residency = self._releases.residency.of(registered.version.digest)
        return self._message(registered.adapter), messages.version_message(registered.version, residency)
