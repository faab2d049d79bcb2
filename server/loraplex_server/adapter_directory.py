"""The adapters that requests may name: the registry in memory, the packages on disk, and who still uses them.

Looking an adapter up costs no database access. The registry is the truth across restarts; this process is its only
writer.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import match_to_base
from loraplex_adapters.errors import (
    AdapterExistsError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    AdapterNotFoundError,
    AdapterTooLargeError,
    AdapterUnavailableError,
    FieldViolation,
    InvalidRequestError,
    StorageError,
)
from loraplex_adapters.leases import AdapterLeases
from loraplex_adapters.names import validate_adapter_name
from loraplex_adapters.package import PackageLimits, read_package
from loraplex_adapters.registry import AdapterRegistry, AdapterState, RegisteredAdapter
from loraplex_adapters.storage_faults import disk_faults
from loraplex_adapters.store import PackageStore

log = logging.getLogger(__name__)

DigestListener = Callable[[str], None]


class AdapterDirectory:
    """Names -> packages. Owned by the front end's event loop; slow work runs in threads, one change at a time."""

    def __init__(
        self,
        registry: AdapterRegistry,
        store: PackageStore,
        spec: BaseSpec,
        limits: PackageLimits,
        roots: tuple[Path, ...],
        staging_root: Path,
    ) -> None:
        """`roots` are the folders that `create_from_folder` may read; `staging_root` is emptied for uploads."""
        self._registry = registry
        self._store = store
        self._spec = spec
        self._limits = limits
        self._roots = tuple(root.resolve() for root in roots)
        self._staging_root = staging_root
        shutil.rmtree(staging_root, ignore_errors=True)  # what a crash left behind
        staging_root.mkdir(parents=True)
        self._by_name = {adapter.name: adapter for adapter in _all_adapters(registry)}
        self._leases = AdapterLeases(self._on_unused)
        self._writing = asyncio.Lock()
        self._deletions: set[asyncio.Task[None]] = set()
        self.arena_elements: int | None = (
            None  # weights of the largest adapter that can be resident; None: unknown
        )
        self.on_retired: DigestListener = lambda digest: None
        self.on_name_deleted: DigestListener = lambda name: None

    def remove_unnamed_packages(self) -> None:
        """Delete stored packages that no adapter needs: a crash came between two steps of a change. Blocks.

        Only for a store that no other registry refers to.
        """
        named = {adapter.digest for adapter in self._by_name.values()}
        with disk_faults():
            for digest in self._store.digests():
                if digest not in named:
                    log.info("removing a package that no adapter needs", extra={"digest": digest[:12]})
                    self._store.delete(digest)

    @property
    def num_adapters(self) -> int:
        return len(self._by_name)

    def is_registered(self, name: str) -> bool:
        return name in self._by_name

    def get(self, name: str) -> RegisteredAdapter:
        """Raises AdapterNotFoundError."""
        adapter = self._by_name.get(name)
        if adapter is None:
            raise AdapterNotFoundError(f"no adapter named '{name}' is registered")
        return adapter

    def list_page(self, page_size: int, after_name: str = "") -> list[RegisteredAdapter]:
        """Up to `page_size` adapters in order of name, after `after_name`."""
        names = sorted(name for name in self._by_name if name > after_name)
        return [self._by_name[name] for name in names[:page_size]]

    @contextmanager
    def lease(self, name: str) -> Iterator[RegisteredAdapter]:
        """Hold an adapter for one request. Raises AdapterNotFoundError, AdapterUnavailableError."""
        adapter = self.get(name)
        if adapter.base_fingerprint != self._spec.fingerprint:
            raise AdapterIncompatibleError(
                f"adapter '{name}' was registered for another base model; register one trained on this base"
            )
        if adapter.state is AdapterState.FAILED:
            raise AdapterUnavailableError(f"the package of adapter '{name}' is damaged; register it again")
        with self._leases.lease(name, adapter.digest):
            yield adapter

    async def create_from_folder(
        self, name: str, path: str, *, validate_only: bool = False
    ) -> RegisteredAdapter:
        """Register the PEFT folder at `path`, which must lie under one of the roots, links resolved."""
        folder = await asyncio.to_thread(self._confined, path)
        return await self.create(name, folder, validate_only=validate_only)

    async def create(
        self, name: str, folder: Path, *, validate_only: bool = False, expected_digest: str = ""
    ) -> RegisteredAdapter:
        """Check the package against the base, store it, register it.

        The same name with the same digest returns what is there. Raises AdapterInvalidError,
        AdapterIncompatibleError, AdapterExistsError, InvalidRequestError, StorageError.
        """
        validate_adapter_name(name)
        async with self._writing:
            adapter = await asyncio.to_thread(self._admit, name, folder, validate_only, expected_digest)
            if not validate_only:
                self._leases.keep(adapter.digest)
                self._by_name[name] = adapter
                log.info("adapter registered", extra={"adapter": name, "digest": adapter.digest[:12]})
        return adapter

    async def delete(self, name: str) -> None:
        """Unregister; running requests finish on it. Raises AdapterNotFoundError."""
        async with self._writing:
            adapter = self.get(name)
            await asyncio.to_thread(self._registry.delete, name)
            del self._by_name[name]
            self.on_name_deleted(name)
            if not any(other.digest == adapter.digest for other in self._by_name.values()):
                self._leases.retire(adapter.digest)
            log.info("adapter deleted", extra={"adapter": name, "digest": adapter.digest[:12]})

    async def mark_failed(self, name: str) -> None:
        """Its stored package turned out to be missing or damaged."""
        async with self._writing:
            if name in self._by_name:
                self._by_name[name] = replace(self._by_name[name], state=AdapterState.FAILED)
                log.error("adapter failed", extra={"adapter": name})
                with suppress(StorageError):  # after a restart it will be found out anew
                    await asyncio.to_thread(self._registry.mark_failed, name)

    def staging_folder(self) -> Path:
        """A fresh private folder for an upload; the caller removes it. Raises StorageError."""
        with disk_faults():
            return Path(tempfile.mkdtemp(dir=self._staging_root))

    async def close(self) -> None:
        """Finish pending deletions and close the registry."""
        await asyncio.gather(*self._deletions)
        await asyncio.to_thread(self._registry.close)

    def _confined(self, path: str) -> Path:
        folder = Path(path)
        # What no file can be called, a loop of links (RuntimeError up to Python 3.12) or a folder that may not be read.
        with suppress(OSError, RuntimeError, ValueError):
            resolved = folder.resolve()
            is_confined = any(resolved.is_relative_to(root) for root in self._roots)
            if folder.is_absolute() and is_confined and resolved.is_dir():
                return resolved
        raise InvalidRequestError(
            [
                FieldViolation(
                    "path", "must be an absolute path of a folder under one of the server's adapter_roots"
                )
            ]
        )

    def _admit(self, name: str, folder: Path, validate_only: bool, expected_digest: str) -> RegisteredAdapter:
        """The slow part, in a thread."""
        package = read_package(folder, self._limits)
        plan = match_to_base(package, self._spec, self._limits.max_rank)
        num_elements = plan.num_elements(self._spec)
        if self.arena_elements is not None and num_elements > self.arena_elements:
            raise AdapterTooLargeError(
                f"the adapter has {num_elements} weights, the whole adapter arena holds {self.arena_elements}; "
                "raise adapter_arena_bytes"
            )
        if expected_digest and package.digest != expected_digest:
            raise AdapterInvalidError(
                f"the package has digest {package.digest}, expected {expected_digest}; it was changed on the way"
            )
        existing = self._by_name.get(name)
        if existing is not None and existing.digest != package.digest:
            raise AdapterExistsError(
                f"the name '{name}' is in use by other weights; delete it first or choose another"
            )
        details: dict[str, Any] = {
            "digest": package.digest,
            "size_bytes": package.size_bytes,
            "rank": plan.max_rank,
            "target_modules": plan.target_modules,
            "served_module_count": len(plan.modules),
            "base_fingerprint": self._spec.fingerprint,
        }
        if validate_only:
            return RegisteredAdapter(
                name=name, state=AdapterState.READY, created_at=datetime.now(UTC), **details
            )
        with disk_faults():
            self._store.put(folder)
        return self._registry.register(name, **details)

    def _on_unused(self, digest: str) -> None:
        """Nobody names or uses the package any more."""
        self.on_retired(digest)
        task = asyncio.get_running_loop().create_task(self._delete_package(digest))
        self._deletions.add(task)
        task.add_done_callback(self._deletions.discard)

    async def _delete_package(self, digest: str) -> None:
        async with self._writing:
            if not any(adapter.digest == digest for adapter in self._by_name.values()):
                # If the disk fails, the package stays until the next start.
                with suppress(StorageError), disk_faults():
                    await asyncio.to_thread(self._store.delete, digest)


def remove_staging(folder: Path) -> None:
    """Remove an upload's folder, whatever state it is in."""
    shutil.rmtree(folder, ignore_errors=True)


def _all_adapters(registry: AdapterRegistry) -> Iterator[RegisteredAdapter]:
    after = ""
    while page := registry.list_page(500, after):
        yield from page
        after = page[-1].name
