"""Where this server's settings let packages come from."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from loraplex_server.admission.sources import confined, fetch_url
from loraplex_server.admission.url_policy import UrlPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSources:
    """Folders under the roots, and allowed URLs."""

    roots: tuple[Path, ...]
    urls: UrlPolicy
    max_bytes: int
    idle_timeout_s: float  # that a source may send nothing
    allow_private_hosts: bool

    async def folder(self, path: str) -> Path:
        """The folder of this machine that `path` names. Raises InvalidRequestError."""
        return await asyncio.to_thread(confined, path, self.roots)

    async def fetch(self, url: str, into: Path) -> None:
        """Copy the package files at `url` into a folder; see `fetch_url` for what it raises."""
        await fetch_url(
            url,
            into,
            self.urls,
            self.roots,
            self.max_bytes,
            self.idle_timeout_s,
            allow_private_hosts=self.allow_private_hosts,
        )
