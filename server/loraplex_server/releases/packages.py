"""The packages of this server: kept while a version or a request needs them, then removed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loraplex_adapters.errors import AdapterUnavailableError, StorageError
from loraplex_adapters.leases import PackageLeases
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.storage_faults import disk_faults
from loraplex_adapters.store import PackageStore
from loraplex_server.adapter_image import delete_image, remove_leftovers, stored_images

log = logging.getLogger(__name__)

_SWEEP_EVERY_S = 600.0
_SWEEP_OLDER_THAN_S = 3600.0


class ServerPackages:
    """Owned by the event loop; files are touched in threads, by one change at a time."""

    def __init__(
        self, registry: AdapterRegistry, store: PackageStore, images_root: Path, *, is_shared: bool
    ) -> None:
        """`is_shared`: the store has a home that other servers use too, where a missing package may be found."""
        self._registry = registry
        self._store = store
        self._images_root = images_root
        self._is_shared = is_shared
        self._began_at = time.time()  # who wrote images before has gone
        self._leases = PackageLeases(self._on_unused)
        self._writing = asyncio.Lock()
        self._deletions: set[asyncio.Task[None]] = set()
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self.on_retired: Callable[[str], None] = lambda digest: None
        self.swept = asyncio.Event()  # set when what was left from before the start is gone

    @property
    def num_leases(self) -> int:
        """Leases held by requests and registrations."""
        return self._leases.num_held

    @contextmanager
    def lease(self, digest: str) -> Iterator[None]:
        """Keep a package for the length of a `with` block, whatever becomes of its versions."""
        with self._leases.lease(digest):
            yield

    def folder(self, digest: str) -> Path:
        """Where a leased package lies. Raises AdapterUnavailableError."""
        return self._store.folder(digest)

    async def hold_stored(self, digest: str) -> bool:
        """Whether a package that admission has just stored is still here, with a lease of the caller on it.

        False where the deletion of an equal one came between: then it must be stored again.
        """
        async with self._writing:
            return await asyncio.to_thread(self._is_here, digest)

    async def share(self, digest: str) -> None:
        """Copy a stored package to where other servers find it. Raises StorageError, AdapterUnavailableError."""
        if self._is_shared:
            await asyncio.to_thread(self._store.share, digest)

    async def ensure(self, digest: str) -> None:
        """Have the package here before a request needs it. Raises AdapterUnavailableError, StorageError.

        Only where packages have a shared home; else what is missing shows when it is read.
        """
        if not self._is_shared or self._is_here(digest):
            return
        fetch = self._fetches.get(digest)
        if fetch is None:
            fetch = self._fetches[digest] = asyncio.create_task(self._fetch(digest))
            fetch.add_done_callback(lambda task: self._fetched(digest, task))
        await asyncio.shield(fetch)

    async def repair(self, digest: str) -> bool:
        """Whether a package that turned out missing or damaged was brought back whole from the shared home."""
        if not self._is_shared:
            return False
        with suppress(AdapterUnavailableError, StorageError):
            async with self._writing:
                await asyncio.to_thread(self._delete_files, digest)
            await self.ensure(digest)
            return True
        return False

    async def retire_unreferenced(self, digests: Iterable[str]) -> None:
        """Versions with these digests are gone: let go of the packages that no version has any more."""
        candidates = set(digests)
        if not candidates:
            return
        with suppress(StorageError):  # the next sweep will find them
            referenced = await asyncio.to_thread(lambda: self._registry.referenced(candidates))
            for digest in candidates - referenced:
                self._leases.retire(digest)

    def keep(self, digest: str) -> None:
        """A version has the package (again)."""
        self._leases.keep(digest)

    async def keep_swept(self) -> None:
        """At the start and then from time to time, remove what crashes and other servers' deletions left here."""
        older_than_s = 0.0  # nobody has registered anything yet that is not leased
        while True:
            with suppress(StorageError):
                async with self._writing:  # else a package that is put again could go behind its back
                    await asyncio.to_thread(self._sweep, older_than_s)
                self.swept.set()
            older_than_s = _SWEEP_OLDER_THAN_S
            await asyncio.sleep(_SWEEP_EVERY_S)

    async def close(self) -> None:
        """Finish pending deletions."""
        await asyncio.gather(*self._deletions)

    def _is_here(self, digest: str) -> bool:
        try:
            self._store.folder(digest)
        except AdapterUnavailableError:
            return False
        return True

    async def _fetch(self, digest: str) -> None:
        await asyncio.to_thread(self._fetch_files, digest)
        log.info("package fetched", extra={"digest": digest[:12]})

    def _fetch_files(self, digest: str) -> None:
        with disk_faults():
            self._store.fetch(digest)

    def _fetched(self, digest: str, task: asyncio.Task[None]) -> None:
        self._fetches.pop(digest, None)
        if not task.cancelled():
            task.exception()  # told to whoever awaits it

    def _on_unused(self, digest: str) -> None:
        """Nobody names or uses the package any more."""
        self.on_retired(digest)
        task = asyncio.get_running_loop().create_task(self._delete(digest))
        self._deletions.add(task)
        task.add_done_callback(self._deletions.discard)

    async def _delete(self, digest: str) -> None:
        async with self._writing:
            with suppress(StorageError):  # the next sweep will find it
                if await asyncio.to_thread(self._needed, {digest}):
                    return  # registered again meanwhile
                await asyncio.to_thread(self._delete_everywhere, digest)

    def _delete_everywhere(self, digest: str) -> None:
        """The copy here goes last: as long as it is there, a sweep finds what a crash left of the other."""
        if self._delete_shared(digest):
            self._delete_files(digest)

    def _delete_shared(self, digest: str) -> bool:
        """False where another server registered it meanwhile: then it was put back."""
        if self._is_shared:
            self._store.delete_shared(digest)
            if self._registry.referenced({digest}):
                with disk_faults():
                    self._store.share(digest)
                return False
        return True

    def _delete_files(self, digest: str) -> None:
        with disk_faults():
            self._store.delete(digest)
            delete_image(self._images_root, digest)

    def _sweep(self, older_than_s: float) -> None:
        with disk_faults():
            for digest in self._store.sweep(self._needed, older_than_s, self._delete_shared):
                log.info("removed a package that no adapter needs", extra={"digest": digest[:12]})
            # Also of packages whose deletion a crash broke off.
            for digest in stored_images(self._images_root):
                if not self._is_here(digest):
                    delete_image(self._images_root, digest)
            remove_leftovers(self._images_root, self._began_at)

    def _needed(self, digests: set[str]) -> set[str]:
        """Runs in a thread: a count may be stale by one, but a lease begins on a package that is new or referenced."""
        return self._registry.referenced(digests) | {
            digest for digest in digests if self._leases.count(digest)
        }
