"""All that adapter releases consist of on one server, and their life together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.errors import StorageError
from loraplex_adapters.names import AdapterName, AdapterReference
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.releases import AdapterEvent, Version
from loraplex_server.admission.pool import AdmissionPool
from loraplex_server.admission.upload import Upload, UploadClaim
from loraplex_server.admission.uploads import UploadStaging
from loraplex_server.engine_client import EngineClient
from loraplex_server.errors import DeadlineExceededError, EngineRestartedError
from loraplex_server.metrics import AdapterPlace
from loraplex_server.releases.directory import AdapterDirectory
from loraplex_server.releases.package_sources import PackageSources
from loraplex_server.releases.packages import ServerPackages
from loraplex_server.releases.pins import PinnedVersions
from loraplex_server.releases.registration import Registered, Registrar, RegistrationRequest
from loraplex_server.releases.registry_sync import RegistrySync
from loraplex_server.releases.residency_view import TIERS, ResidencyView
from loraplex_server.releases.shadowing import Shadows

log = logging.getLogger(__name__)

_DEFAULT_WARM_S = 60.0
_EVENTS_AT_ONCE = 200
_PURGE_EVERY_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """Owned by the front end's event loop."""

    registry: AdapterRegistry
    directory: AdapterDirectory
    packages: ServerPackages
    registrar: Registrar
    admission: AdmissionPool
    sources: PackageSources
    staging: UploadStaging
    residency: ResidencyView
    pins: PinnedVersions
    sync: RegistrySync
    shadows: Shadows
    engine: EngineClient
    spec: BaseSpec
    max_lora_rank: int
    fetching: asyncio.Semaphore  # bounds the packages that come from URLs at the same time
    background: list[asyncio.Task[None]]

    async def start(self) -> None:
        """Begin to follow the registry and to clean up, and tell the engine what is pinned. Raises StorageError."""
        await self.admission.start()
        self.directory.subscribe(self.pins.adapter_changed)
        self.directory.on_forgotten = self.pins.refresh
        self.pins.refresh()
        for job in (self.sync.run, self.packages.keep_swept, self._keep_staging_purged):
            self.background.append(asyncio.create_task(job()))

    async def end_watches(self) -> None:
        """The server stops; those who watch are told."""
        await self.sync.close()

    async def close(self) -> None:
        """Stop all of it; nothing is lost."""
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        await self.pins.close()
        await self.shadows.close()
        await self.admission.close()
        await self.packages.close()
        await asyncio.to_thread(self.registry.close)

    def engine_ready(self) -> None:
        """A new engine knows nothing of what is pinned."""
        self.pins.engine_restarted()

    def engine_gone(self) -> None:
        """Its memory is lost."""
        self.residency.engine_gone(
            EngineRestartedError("the engine stopped while the adapter was loaded; try again")
        )

    async def register_folder(self, request: RegistrationRequest, path: str) -> Registered:
        """Register a folder of this machine, under one of the roots."""
        return await self.registrar.register(request, await self.sources.folder(path))

    async def register_url(self, request: RegistrationRequest, url: str) -> Registered:
        """Register a folder that a URL names."""
        async with self.staging.open() as upload:
            async with self.fetching:
                try:
                    await self.sources.fetch(url, upload.folder)
                finally:
                    await asyncio.to_thread(upload.count_files)
            return await self.registrar.register(request, upload.folder)

    def place_of(self, label: str) -> AdapterPlace | None:
        """For the metrics; None for an adapter that nobody asked for lately. Any thread may ask."""
        adapter = self.directory.peek(AdapterName.parse(label))
        if adapter is None:
            return None
        residency = self.residency.of(adapter.stable.digest)
        return AdapterPlace(TIERS.index(residency.tier), residency.read_s, residency.copy_s)

    def upload(self, claim: UploadClaim) -> AbstractAsyncContextManager[Upload]:
        """A folder for what a client sends; see `UploadStaging.open`."""
        return self.staging.open(claim)

    async def received(self, upload_id: str) -> dict[str, int]:
        """Bytes by file of an unfinished upload. Raises AdapterNotFoundError."""
        return await asyncio.to_thread(self.staging.received, upload_id)

    async def warm(self, reference: AdapterReference, timeout_s: float | None) -> list[Version]:
        """Bring what a reference names into slots, and wait until it is there.

        Raises AdapterError, EngineUnavailableError, DeadlineExceededError.
        """
        adapter = await self.directory.get(reference.name)
        versions = [adapter.version(reference.target)] if reference.target else list(adapter.served_by_name())
        try:
            async with asyncio.timeout(_DEFAULT_WARM_S if timeout_s is None else timeout_s):
                await asyncio.gather(*(self._warm(version) for version in versions))
        except TimeoutError:
            raise DeadlineExceededError(
                "no adapter slot became free in time; try again when fewer adapters are in use"
            ) from None
        return versions

    async def watch(
        self, after: int, tenant: str | None, name: AdapterName | None
    ) -> AsyncIterator[AdapterEvent]:
        """Changes behind revision `after`, for ever. Raises EventsExpiredError, StorageError, DrainingError."""
        while True:
            looked_up_to = self.sync.revision
            events = await asyncio.to_thread(self.registry.events, after, _EVENTS_AT_ONCE, tenant, name)
            for event in events:
                yield event
            after = max([after, *(event.revision for event in events)])
            if len(events) < _EVENTS_AT_ONCE:
                after = max(after, looked_up_to)
                await self.sync.wait_beyond(after)

    async def _keep_staging_purged(self) -> None:
        """Uploads that broke off go when their time is over, though no other begins."""
        while True:
            await asyncio.sleep(_PURGE_EVERY_S)
            with suppress(StorageError):
                await asyncio.to_thread(self.staging.purge)

    async def _warm(self, version: Version) -> None:
        self.directory.check_servable(version)
        with self.packages.lease(version.digest):
            await self.packages.ensure(version.digest)
            self.engine.warm_adapter(version.digest)
            await self.residency.wait_for_slot(version.digest)
