"""The adapters that requests may name, and the changes made to them here or on other servers of the registry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.errors import (
    AdapterError,
    AdapterIncompatibleError,
    AdapterNotFoundError,
    AdapterUnavailableError,
    StorageError,
)
from loraplex_adapters.names import AdapterName, AdapterReference
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.releases import Adapter, AdapterEvent, Version, VersionState
from loraplex_server.releases.adapter_cache import AdapterCache
from loraplex_server.releases.packages import ServerPackages

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

ChangeListener = Callable[[AdapterName, Adapter | None, Adapter | None], None]
"""Told (name, before, after) of every change, after it has taken effect; None: not known, or gone."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference stands for at one moment."""

    adapter: Adapter
    version: Version
    shadow: Version | None = None  # answers unseen besides


class AdapterDirectory:
    """Names -> versions. Owned by the front end's event loop; the registry is the truth, across servers too."""

    def __init__(
        self,
        registry: AdapterRegistry,
        packages: ServerPackages,
        spec: BaseSpec,
        *,
        owns_registry: bool = True,
        cache: AdapterCache | None = None,
    ) -> None:
        """`owns_registry`: no other server has it, so that a package missing here is missing for all."""
        self.registry = registry
        self._packages = packages
        self._spec = spec
        self._owns_registry = owns_registry
        self._cache = cache or AdapterCache(registry.get)
        self._changing = asyncio.Lock()
        self._listeners: list[ChangeListener] = []
        self.on_forgotten: Callable[[], None] = lambda: None
        self.num_adapters = registry.count()

    def subscribe(self, listener: ChangeListener) -> None:
        """`listener` must return at once."""
        self._listeners.append(listener)

    @property
    def base_fingerprint(self) -> str:
        """Of the resident base."""
        return self._spec.fingerprint

    def peek(self, name: AdapterName) -> Adapter | None:
        """What is known of it without asking; None for one that no request has named lately."""
        return self._cache.peek(name)

    def is_known(self, name: AdapterName) -> bool:
        """Whether requests have named it and it is there."""
        return self._cache.peek(name) is not None

    async def get(self, name: AdapterName) -> Adapter:
        """Raises AdapterNotFoundError, StorageError."""
        return await self._cache.get(name)

    async def resolve(self, reference: AdapterReference, routing_key: str) -> Resolved:
        """The version that answers now, checked and with its package here.

        Raises AdapterNotFoundError, AdapterIncompatibleError, AdapterUnavailableError, StorageError.
        """
        while True:
            resolved = self._choose(await self._cache.get(reference.name), reference, routing_key)
            self.check_servable(resolved.version)
            await self._packages.ensure(resolved.version.digest)
            # The adapter may have changed while a package was fetched; a request takes what is true when it is leased.
            if self._cache.peek(reference.name) is resolved.adapter:
                return resolved

    @contextmanager
    def lease(self, resolved: Resolved) -> Iterator[Resolved]:
        """Keep a resolved version's package. Entered before anything else is awaited after `resolve`."""
        with self._packages.lease(resolved.version.digest):
            yield resolved

    async def change(self, write: Callable[[], Adapter]) -> Adapter:
        """Carry out a registry write in a thread and let it take effect here in the same instant."""
        return await _to_the_end(self._change(write))

    async def delete(self, name: AdapterName, delete: Callable[[], Adapter | None]) -> None:
        """Carry out a registry deletion; running requests finish on what they have."""
        await _to_the_end(self._delete(name, delete))

    async def mark_failed(self, name: AdapterName, digest: str) -> None:
        """The stored package of a version turned out missing or damaged; brought back if it can be."""
        if await self._packages.repair(digest):
            log.warning("package repaired", extra={"adapter": str(name), "digest": digest[:12]})
            return
        log.error("version failed", extra={"adapter": str(name), "digest": digest[:12]})
        if not self._owns_registry:
            return  # other servers may have it whole
        with suppress(StorageError, AdapterNotFoundError):  # it will be found out anew
            await self.change(lambda: self.registry.mark_failed(name, digest))

    async def follow(self, events: list[AdapterEvent]) -> None:
        """Take in what happened in the registry, here or elsewhere."""
        latest = {event.name: event.revision for event in events}
        for name, revision in latest.items():
            known = self._cache.peek(name)
            if known is None:
                self._cache.changed(name)
                self._notify(
                    name, None, None
                )  # nobody here asked for it yet; a pin may still concern this server
            elif known.revision < revision:  # else it was done here
                await self._refresh(name, revision)
        self.num_adapters = await asyncio.to_thread(self.registry.count)

    def forget_all(self) -> None:
        """Events were missed: read every adapter anew when it is asked for."""
        self._cache.clear()
        self.on_forgotten()

    async def _change(self, write: Callable[[], Adapter]) -> Adapter:
        async with self._changing:
            adapter = await asyncio.to_thread(write)
            await self._refresh(adapter.name, adapter.revision)
        return adapter

    async def _delete(self, name: AdapterName, delete: Callable[[], Adapter | None]) -> None:
        async with self._changing:
            gone = await asyncio.to_thread(delete)
            if gone is not None:
                self._cache.drop(name, gone.revision)
                await self._tell(name, gone, None)

    async def _refresh(self, name: AdapterName, revision: int) -> None:
        """Let what was written at `revision` take effect."""
        before = self._cache.peek(name)
        after: Adapter | None = None
        try:
            after = await self._cache.refresh(name)
        except AdapterNotFoundError:
            self._cache.drop(name, revision)
        else:
            for version in after.versions:
                self._packages.keep(version.digest)
        await self._tell(name, before, after)

    async def _tell(self, name: AdapterName, before: Adapter | None, after: Adapter | None) -> None:
        self._notify(name, before, after)
        if before is not None:
            kept = {version.digest for version in after.versions} if after is not None else set()
            await self._packages.retire_unreferenced({v.digest for v in before.versions} - kept)
        self.num_adapters = await asyncio.to_thread(self.registry.count)

    def _notify(self, name: AdapterName, before: Adapter | None, after: Adapter | None) -> None:
        for listener in self._listeners:
            listener(name, before, after)

    def _choose(self, adapter: Adapter, reference: AdapterReference, routing_key: str) -> Resolved:
        if reference.target:
            return Resolved(adapter, adapter.version(reference.target))
        version = adapter.choose(routing_key)
        return Resolved(adapter, version, self._servable_shadow(adapter, version, routing_key))

    def _servable_shadow(self, adapter: Adapter, served: Version, routing_key: str) -> Version | None:
        """What answers unseen besides `served`, unless it is the same or could not answer."""
        shadow = adapter.shadow_of(routing_key)
        if shadow is None or shadow.digest == served.digest:
            return None
        try:
            self.check_servable(shadow)
        except AdapterError:
            return None
        return shadow

    def check_servable(self, version: Version) -> None:
        """Raises AdapterIncompatibleError, AdapterUnavailableError."""
        if version.base_fingerprint != self._spec.fingerprint:
            raise AdapterIncompatibleError(
                f"version {version.digest[:12]} was registered for another base model; "
                "register one trained on this base"
            )
        if version.state is VersionState.FAILED:
            raise AdapterUnavailableError(
                f"the package of version {version.digest[:12]} is missing or damaged; register it again"
            )


async def _to_the_end(work: Coroutine[None, None, _Result]) -> _Result:
    """Its result, awaited even where the caller is cancelled meanwhile: a write under way in a thread takes effect
    whoever waits for it, and what its caller holds must be held until then.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody is left to be told
        raise
