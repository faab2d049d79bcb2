"""Other adapters of the server, for the gate: their answers must not change when the new one is loaded."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from pathlib import Path

from loraplex_adapters.errors import LoraplexError
from loraplex_adapters.package import DEFAULT_LIMITS, WEIGHTS_FILE
from loraplex_adapters.peft_config import CONFIG_FILE
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.releases import Version, VersionState
from loraplex_server.releases.packages import ServerPackages
from loraplex_server.training.jobs import TrainingJob

_MAX_NEIGHBOURS = 2
_LOOKED_AT = 100  # adapters

log = logging.getLogger(__name__)


class Neighbours:
    """Owned by the event loop."""

    def __init__(self, registry: AdapterRegistry, packages: ServerPackages, base_fingerprint: str) -> None:
        self._registry = registry
        self._packages = packages
        self._base_fingerprint = base_fingerprint

    async def link(self, job: TrainingJob, into: Path) -> tuple[str, ...]:
        """Folders of a few packages, below `into`, that stay though their adapters are deleted.

        They are numbered: a tenant learns no other's names. Where one cannot be had, there are fewer.
        """
        folders = []
        try:
            versions = await asyncio.to_thread(self._choose, job)
            await asyncio.to_thread(shutil.rmtree, into, True)
            for number, version in enumerate(versions, 1):
                folder = into / f"neighbour-{number}" / "package"
                with self._packages.lease(version.digest):
                    await asyncio.to_thread(_link, self._packages.folder(version.digest), folder)
                folders.append(str(folder))
        except (LoraplexError, OSError) as error:
            log.warning("a gate sees fewer other adapters", extra={"cause": type(error).__name__})
        return tuple(folders)

    def _choose(self, job: TrainingJob) -> list[Version]:
        """The newest ones of other names. Blocks."""
        found = [
            adapter.stable
            for adapter in self._registry.list_page(_LOOKED_AT)
            if adapter.name != job.adapter and self._is_servable(adapter.stable)
        ]
        return sorted(found, key=lambda version: version.created_at, reverse=True)[:_MAX_NEIGHBOURS]

    def _is_servable(self, version: Version) -> bool:
        is_sound = version.state is VersionState.READY and version.base_fingerprint == self._base_fingerprint
        return is_sound and version.rank <= DEFAULT_LIMITS.max_rank


def _link(package: Path, folder: Path) -> None:
    """The two files under another name, without a copy where the file system knows how."""
    folder.mkdir(parents=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            os.link(package / name, folder / name)
        except OSError:
            shutil.copyfile(package / name, folder / name)
