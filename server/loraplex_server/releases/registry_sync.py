"""Follows the registry, so that what another server changes is served here within a second."""

from __future__ import annotations

import asyncio
import logging

from loraplex_adapters.errors import EventsExpiredError, StorageError
from loraplex_adapters.registry import AdapterRegistry
from loraplex_server.errors import DrainingError
from loraplex_server.releases.directory import AdapterDirectory

log = logging.getLogger(__name__)

POLL_S = 0.25
_MAX_PAUSE_S = 5.0  # between tries while the database is lost
_BATCH = 500


class RegistrySync:
    """Asks for the registry's newest revision again and again, which costs one indexed row."""

    def __init__(
        self, registry: AdapterRegistry, directory: AdapterDirectory, poll_s: float = POLL_S
    ) -> None:
        self._registry = registry
        self._directory = directory
        self._poll_s = poll_s
        self._revision = registry.revision()
        self._grown = asyncio.Condition()
        self._is_lost = False
        self._is_closed = False

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = self._poll_s
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self._catch_up()
            except StorageError:
                pause_s = min(pause_s * 2, _MAX_PAUSE_S)
                if not self._is_lost:
                    log.error("the registry is lost; known adapters are served, changes are refused")
                self._is_lost = True
                continue
            if self._is_lost:
                log.info("the registry is back")
            self._is_lost = False
            pause_s = self._poll_s

    @property
    def revision(self) -> int:
        """Up to where changes have taken effect here."""
        return self._revision

    async def wait_beyond(self, revision: int) -> None:
        """Until a change after `revision` has taken effect here. Raises DrainingError when the server stops."""
        async with self._grown:
            await self._grown.wait_for(lambda: self._is_closed or self._revision > revision)
        if self._is_closed:
            raise DrainingError("the server is stopping; watch on another one or again later")

    async def close(self) -> None:
        """End those who wait."""
        async with self._grown:
            self._is_closed = True
            self._grown.notify_all()

    async def _catch_up(self) -> None:
        while await asyncio.to_thread(self._registry.revision) > self._revision:
            try:
                events = await asyncio.to_thread(self._registry.events, self._revision, _BATCH)
            except EventsExpiredError:
                self._directory.forget_all()
                await self._advance(await asyncio.to_thread(self._registry.revision))
                return
            if not events:
                return
            await self._directory.follow(events)
            await self._advance(events[-1].revision)

    async def _advance(self, revision: int) -> None:
        async with self._grown:
            self._revision = revision
            self._grown.notify_all()
