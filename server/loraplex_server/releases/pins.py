"""Keeps the engine told which versions stay resident."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from loraplex_adapters.errors import LoraplexError, StorageError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.releases import Adapter, Version, VersionState
from loraplex_server.releases.packages import ServerPackages

log = logging.getLogger(__name__)

_RETRY_S = 2.0  # while the database is lost
_NAMED = 10  # in one warning


class PinnedVersions:
    """What pinned adapters serve by name, on this base. Owned by the event loop.

    The registry refuses pins that would leave the others no slot, but a rollback, which must always be possible, and a
    server of fewer slots than the one that was asked, may come to more. Then the last ones by name are not pinned here:
    they are served as any other, and nobody becomes unavailable.
    """

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
        self.left_out: dict[str, str] = {}
        """Digest -> adapter: served by pinned names, and evicted as any other, since no slot or room would be left."""
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
                digests, left_out = await asyncio.to_thread(self._choose)
            except StorageError:  # until then, what the engine was told before stays true enough
                self._is_stale = True
                await asyncio.sleep(_RETRY_S)
                continue
            for digest in digests - self._told:
                with suppress(LoraplexError):  # a package that is nowhere fails when it is asked for
                    await self._packages.ensure(digest)
            if left_out != self.left_out:
                self.left_out = left_out
                _warn_of(left_out)
            if digests != self._told:
                self._told = digests
                self._pin(sorted(digests))
                log.info("pinned versions", extra={"count": len(digests)})

    def _choose(self) -> tuple[set[str], dict[str, str]]:
        """What to pin, and `left_out`. Those first by name are pinned: all servers with equal limits agree, and a
        restart changes nothing. Blocks. Raises StorageError.
        """
        versions: dict[str, Version] = {}
        names: dict[str, str] = {}
        for adapter in self._registry.pinned():
            for version in adapter.served_by_name():
                if (
                    version.base_fingerprint == self._base_fingerprint
                    and version.state is not VersionState.FAILED
                ):
                    versions[version.digest] = version
                    names.setdefault(version.digest, str(adapter.name))
        limits = self._registry.pin_limits
        if limits is None or not versions:
            return set(versions), {}
        largest = self._registry.largest_version(self._base_fingerprint, limits.arena_elements)
        allowed = limits.allowed(versions.values(), largest)
        return allowed, {digest: name for digest, name in names.items() if digest not in allowed}


def _warn_of(left_out: dict[str, str]) -> None:
    if not left_out:
        log.info("all pinned adapters have slots of their own again")
        return
    names = sorted(set(left_out.values()))
    log.warning(
        "pinned adapters left without a slot of their own",
        extra={"left_out": ", ".join(names[:_NAMED]), "count": len(left_out)},
    )
