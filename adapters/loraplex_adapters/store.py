"""Packages on disk by digest: `<root>/<digest>/` holds the two files, whole or not at all."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from loraplex_adapters.errors import AdapterInvalidError, AdapterUnavailableError
from loraplex_adapters.package import (
    DEFAULT_LIMITS,
    WEIGHTS_FILE,
    AdapterPackage,
    PackageLimits,
    open_package_file,
    read_package,
    refuse_pickles,
)
from loraplex_adapters.peft_config import CONFIG_FILE, MAX_CONFIG_BYTES

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOCK_FILE = ".lock"
_UNFINISHED_PREFIX = ".unfinished-"  # folders being written or being deleted
_COPY_BYTES = 1024 * 1024

log = logging.getLogger(__name__)


class PackageStore:
    """A content-addressed folder. Any number of threads and processes may use the same root at once.

    A package becomes visible by one rename, after its bytes are on disk; what a crash leaves behind is
    removed when the store is next opened. Whether a package is still needed is for the registry and the
    leases to say.
    """

    def __init__(self, root: Path, limits: PackageLimits = DEFAULT_LIMITS) -> None:
        self._root = root
        self._limits = limits
        root.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    def put(self, package_folder: Path) -> AdapterPackage:
        """Copy the two files of a PEFT folder in, check the copy, and return it. Storing it again changes
        nothing.

        Raises AdapterInvalidError; OSError where the disk fails.
        """
        refuse_pickles(package_folder)
        with self._writing() as unfinished:
            # The copy is what gets checked, so that a folder that changes meanwhile is no way around the
            # checks.
            _copy_file(package_folder, CONFIG_FILE, unfinished, MAX_CONFIG_BYTES)
            _copy_file(package_folder, WEIGHTS_FILE, unfinished, self._limits.max_bytes)
            _sync_folder(unfinished)
            package = read_package(unfinished, self._limits)
            final = self._root / package.digest
            self._publish(unfinished, final)
        return replace(package, folder=final)

    def folder(self, digest: str) -> Path:
        """Where the package lies. Raises AdapterUnavailableError if it is not stored."""
        folder = self._path_of(digest)
        if not folder.is_dir():
            raise AdapterUnavailableError("the adapter's stored package is missing; register it again")
        return folder

    def verify(self, digest: str) -> AdapterPackage:
        """Read the whole package and compare its digest.

        Raises AdapterUnavailableError if missing or damaged.
        """
        folder = self.folder(digest)
        try:
            package = read_package(folder, self._limits)
        except AdapterInvalidError as error:
            raise AdapterUnavailableError(
                f"the adapter's stored package is damaged; register it again ({error})"
            ) from error
        if package.digest != digest:
            raise AdapterUnavailableError("the adapter's stored package was changed; register it again")
        return package

    def delete(self, digest: str) -> None:
        """Remove a package; nothing happens if there is none. Weights mapped from it stay usable."""
        with self._writing() as unfinished:
            try:
                self._path_of(digest).rename(unfinished / "deleted")
            except FileNotFoundError:
                return
            _sync_folder(self._root)

    def digests(self) -> list[str]:
        """Digests of all stored packages, sorted."""
        return sorted(name for name in os.listdir(self._root) if _DIGEST.fullmatch(name))

    def _path_of(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"a digest has 64 hex digits, not {digest[:80]!r}")
        return self._root / digest

    @contextmanager
    def _writing(self) -> Iterator[Path]:
        """An empty folder beside the packages, gone afterwards. Opening the store spares it meanwhile."""
        with (self._root / _LOCK_FILE).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED_PREFIX, dir=self._root))
            try:
                yield unfinished
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)  # what stays is a leftover for the next open

    def _publish(self, unfinished: Path, final: Path) -> None:
        while True:
            try:
                unfinished.rename(final)
            except OSError:
                if not final.is_dir():
                    raise
                if self._is_whole(final.name):
                    return  # stored before, or by another writer just now
                log.warning("replacing a damaged package", extra={"digest": final.name})
                self.delete(final.name)
                continue
            _sync_folder(self._root)
            return

    def _is_whole(self, digest: str) -> bool:
        try:
            self.verify(digest)
        except AdapterUnavailableError:
            return False
        return True

    def _remove_leftovers(self) -> None:
        with (self._root / _LOCK_FILE).open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # someone is writing; leftovers wait for a quieter open
            for path in self._root.glob(f"{_UNFINISHED_PREFIX}*"):
                log.info("removing what a crash left in the package store", extra={"folder": path.name})
                shutil.rmtree(path)


def _copy_file(source: Path, name: str, target: Path, max_bytes: int) -> None:
    """Copy one file and flush it to disk. Reads no more than `max_bytes` + 1, even from a file that grows."""
    with open_package_file(source, name) as reader, (target / name).open("xb") as writer:
        left = max_bytes + 1
        while left and (chunk := reader.read(min(left, _COPY_BYTES))):
            writer.write(chunk)
            left -= len(chunk)
        if not left:
            raise AdapterInvalidError(f"{name} has more than {max_bytes} bytes")
        writer.flush()
        os.fsync(writer.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
