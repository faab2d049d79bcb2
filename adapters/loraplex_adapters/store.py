"""Packages on disk by digest: `<root>/<digest>/` holds the two files, whole or not at all. A second home of them may be
shared with other servers.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
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
from loraplex_adapters.shared_packages import SharedPackages

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOCK_FILE = ".lock"
_UNFINISHED_PREFIX = ".unfinished-"  # folders being written or being deleted
_COPY_BYTES = 1024 * 1024
_SWEPT_AT_ONCE = 500

log = logging.getLogger(__name__)


class PackageStore:
    """A content-addressed folder. Any number of threads and processes may use the same root at once.

    A package becomes visible by one rename, after its bytes are on disk; what a crash leaves behind is
    removed when the store is next opened. Whether a package is still needed is for the registry and the
    leases to say.
    """

    def __init__(
        self, root: Path, limits: PackageLimits = DEFAULT_LIMITS, shared_url: str | None = None
    ) -> None:
        """`shared_url` names a folder or bucket, as fsspec does, where other servers find what is put here."""
        self._root = root
        self._limits = limits
        self._shared = SharedPackages(shared_url) if shared_url else None
        root.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    def put(self, package_folder: Path) -> AdapterPackage:
        """Copy the two files of a PEFT folder in, and into the shared home; check the copy, and return it.

        Storing it again changes nothing, but `sweep` takes it for new.
        Raises AdapterInvalidError; OSError where the disk fails, StorageError where the shared home does.
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
        self.share(package.digest)
        return replace(package, folder=final)

    def share(self, digest: str) -> None:
        """Copy a stored package into the shared home, unless there is none or it has it.

        Raises AdapterUnavailableError if it is not stored; StorageError where the shared home fails.
        """
        if self._shared is not None:
            self._shared.put(self.folder(digest), digest)

    def fetch(self, digest: str) -> AdapterPackage:
        """Bring a package that is missing or damaged here from the shared home, and return it checked.

        Raises AdapterUnavailableError if it is in neither, or damaged there; StorageError where the shared home fails;
        OSError where the disk does.
        """
        try:
            return self.verify(digest)
        except AdapterUnavailableError:
            if self._shared is None:
                raise
        with self._writing() as unfinished:
            try:
                for name, max_bytes in (
                    (CONFIG_FILE, MAX_CONFIG_BYTES),
                    (WEIGHTS_FILE, self._limits.max_bytes),
                ):
                    _write_file(self._shared.read(digest, name), name, unfinished, max_bytes)
                package = read_package(unfinished, self._limits)
            except AdapterInvalidError as error:
                raise AdapterUnavailableError(
                    f"the adapter's package in the shared store is damaged; register it again ({error})"
                ) from error
            if package.digest != digest:
                raise AdapterUnavailableError(
                    "the adapter's package in the shared store was changed; register it again"
                )
            _sync_folder(unfinished)
            final = self._path_of(digest)
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

    def delete_shared(self, digest: str) -> None:
        """Remove a package from the shared home, if there is one and it has it. Raises StorageError."""
        self._path_of(digest)  # a digest is never taken for a path
        if self._shared is not None:
            self._shared.delete(digest)

    def sweep(
        self,
        is_referenced: Callable[[set[str]], set[str]],
        older_than_s: float = 3600,
        may_go: Callable[[str], bool] = lambda digest: True,
    ) -> list[str]:
        """Remove local packages that nobody needs and that were last put more than `older_than_s` ago; return them.

        `is_referenced` returns those of some digests that are needed, by the registry or by running requests. A
        package is put before it is referred to; its age gives time for that. `may_go` is asked of each right before
        it is removed. Where another thread or process is writing to the store, the rest waits for the next sweep.
        """
        before = time.time() - older_than_s
        old = [digest for digest in self.digests() if self._was_put_before(digest, before)]
        removed = []
        for start in range(0, len(old), _SWEPT_AT_ONCE):
            some = set(old[start : start + _SWEPT_AT_ONCE])
            for digest in sorted(some - is_referenced(some)):
                if may_go(digest) and self._delete_if_put_before(digest, before):
                    removed.append(digest)
        return removed

    def digests(self) -> list[str]:
        """Digests of all stored packages, sorted."""
        return sorted(name for name in os.listdir(self._root) if _DIGEST.fullmatch(name))

    def _was_put_before(self, digest: str, moment: float) -> bool:
        """By the folder's own time, which `put` renews; `moment` in seconds since 1970."""
        try:
            return self._path_of(digest).stat().st_mtime < moment
        except FileNotFoundError:
            return False

    def _delete_if_put_before(self, digest: str, moment: float) -> bool:
        """Remove a package unless it was put again meanwhile, or someone is writing."""
        with self._alone() as is_alone:
            if not is_alone or not self._was_put_before(digest, moment):
                return False
            doomed = Path(tempfile.mkdtemp(prefix=_UNFINISHED_PREFIX, dir=self._root))
            self._path_of(digest).rename(doomed / "deleted")
            _sync_folder(self._root)
            shutil.rmtree(doomed, ignore_errors=True)
            return True

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """True if nobody writes until the end of the block; False if someone is writing now."""
        with (self._root / _LOCK_FILE).open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

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
                if self._is_whole(final.name):  # stored before, or by another writer just now
                    os.utime(final)  # for `sweep`, which cannot come in between: this is a writer
                    return
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
        with self._alone() as is_alone:
            if not is_alone:
                return  # leftovers wait for a quieter open
            for path in self._root.glob(f"{_UNFINISHED_PREFIX}*"):
                log.info("removing what a crash left in the package store", extra={"folder": path.name})
                shutil.rmtree(path)


def _copy_file(source: Path, name: str, target: Path, max_bytes: int) -> None:
    """Copy one file of a folder and flush it to disk."""
    with open_package_file(source, name) as reader:
        _write_file(iter(lambda: reader.read(_COPY_BYTES), b""), name, target, max_bytes)


def _write_file(chunks: Iterator[bytes], name: str, target: Path, max_bytes: int) -> None:
    """Write a file and flush it to disk. Takes one chunk too many at most, even from a source without an end."""
    left = max_bytes
    with (target / name).open("xb") as writer:
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                raise AdapterInvalidError(f"{name} has more than {max_bytes} bytes")
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
