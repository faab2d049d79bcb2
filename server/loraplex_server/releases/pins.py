"""Keeps the engine told which versions stay resident."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from loraplex_adapters.errors import LoraplexError, StorageError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.releases import Adapter, VersionState
from loraplex_server.releases.packages import ServerPackages

log = logging.getLogger(__name__)

_RETRY_S = 2.0  # while the database is lost


class PinnedVersions:
    """What pinned adapters serve by name, on this base. Owned by the event loop."""

    def __init__(
        self,
        registry: AdapterRegistry,
        packages: ServerPackages,
        base_fingerprint: str,
        pin: Callable[[list[str]], None],
    ) -> None:
        """`pin(digests)` tells the engine the whole set, and returns at once."""
        self._registry = registry
        self._packages = packages
        self._base_fingerprint = base_fingerprint
        self._pin = pin
        self._told: set[str] = set()
        self._refresh: asyncio.Task[None] | None = None
        self._is_stale = False

    def adapter_changed(self, name: AdapterName, before: Adapter | None, after: Adapter | None) -> None:
        """Look again if it is, was or may be pinned."""
        is_unknown = before is None and after is None
        if is_unknown or (before is not None and before.is_pinned) or (after is not None and after.is_pinned):
            self.refresh()

    def refresh(self) -> None:
        """Read what is pinned and tell the engine, in the background; also for a new engine, which knows nothing."""
        self._is_stale = True
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.get_running_loop().create_task(self._tell())

    def engine_restarted(self) -> None:
        """It must be told again: at once what was true before, and then what is."""
        if self._told:
            self._pin(sorted(self._told))
        self.refresh()

    def package_retired(self, digest: str) -> None:
        """The engine was told to forget it, and so does not pin it any more."""
        self._told.discard(digest)

    async def close(self) -> None:
        """Look no more."""
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.gather(self._refresh, return_exceptions=True)

    async def _tell(self) -> None:
        while self._is_stale:
            self._is_stale = False
            try:
                pinned = await asyncio.to_thread(self._registry.pinned)
            except StorageError:  # until then, what the engine was told before stays true enough
                self._is_stale = True
                await asyncio.sleep(_RETRY_S)
                continue
            digests = {
                version.digest
                for adapter in pinned
                for version in adapter.served_by_name()
                if version.base_fingerprint == self._base_fingerprint
                and version.state is not VersionState.FAILED
            }
            for digest in digests - self._told:
                with suppress(LoraplexError):  # a package that is nowhere fails when it is asked for
                    await self._packages.ensure(digest)
            if digests != self._told:
                self._told = digests
                self._pin(sorted(digests))
                log.info("pinned versions", extra={"count": len(digests)})
