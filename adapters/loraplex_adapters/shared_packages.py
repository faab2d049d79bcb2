"""A home of packages that several servers share: a folder or bucket named by a URL, read and written through fsspec."""

from __future__ import annotations

import logging
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from loraplex_adapters.errors import AdapterUnavailableError, LoraplexError, StorageError
from loraplex_adapters.package import WEIGHTS_FILE
from loraplex_adapters.peft_config import CONFIG_FILE

_FILES = (WEIGHTS_FILE, CONFIG_FILE)
_COPY_BYTES = 1024 * 1024

log = logging.getLogger(__name__)


class SharedPackages:
    """`<url>/<digest>/` holds the two files of a package. Any number of servers may use the same URL at once.

    Nothing here is trusted: who reads a package checks its digest.
    """

    def __init__(self, url: str) -> None:
        """Raises StorageError if there is no library for the URL's scheme."""
        with _faults():
            # Listings that are kept for a while would hide what other servers write.
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)

    def put(self, folder: Path, digest: str) -> None:
        """Copy a package there unless the same files are. Raises StorageError.

        A file shows up under its name whole, or not at all, where the file system can rename or writes objects.
        """
        with _faults():
            home = self._home_of(digest)
            for name in _FILES:
                if self._is_there(f"{home}/{name}", folder / name):
                    continue
                self._files.makedirs(home, exist_ok=True)
                unfinished = f"{home}/.unfinished-{uuid.uuid4().hex}"
                try:
                    self._files.put_file(str(folder / name), unfinished)
                    self._files.mv(unfinished, f"{home}/{name}")
                except BaseException:
                    if self._size(unfinished) is not None:
                        self._files.rm_file(unfinished)
                    raise

    def read(self, digest: str, name: str) -> Iterator[bytes]:
        """One file of a package, in pieces. Raises AdapterUnavailableError if it is not there, StorageError."""
        with _faults():
            try:
                reader = self._files.open(f"{self._home_of(digest)}/{name}", "rb", block_size=_COPY_BYTES)
            except FileNotFoundError as error:
                raise AdapterUnavailableError(
                    "the adapter's package is in no store of this server; register it again"
                ) from error
            with reader:
                while chunk := reader.read(_COPY_BYTES):
                    yield chunk

    def delete(self, digest: str) -> None:
        """Remove a package; nothing happens if there is none. Raises StorageError."""
        with _faults():
            home = self._home_of(digest)
            try:
                self._files.rm(home, recursive=True)
            except FileNotFoundError:
                return

    def _home_of(self, digest: str) -> str:
        return posixpath.join(self._root, digest)

    def _is_there(self, path: str, local: Path) -> bool:
        """Whether it is the same file, byte for byte: registering again shall mend what was damaged there."""
        if self._size(path) != local.stat().st_size:
            return False
        with self._files.open(path, "rb", block_size=_COPY_BYTES) as there, local.open("rb") as here:
            while chunk := here.read(_COPY_BYTES):
                if there.read(len(chunk)) != chunk:
                    return False
        return True

    def _size(self, path: str) -> int | None:
        """In bytes; None if there is no such file."""
        try:
            return int(self._files.info(path)["size"])
        except FileNotFoundError:
            return None


@contextmanager
def _faults() -> Iterator[None]:
    """Raises StorageError in place of what the many libraries behind fsspec raise."""
    try:
        yield
    except LoraplexError:
        raise
    except Exception as error:
        log.error("the shared package store failed", extra={"cause": f"{type(error).__name__}: {error}"})
        raise StorageError("the shared package store cannot be used; try again later") from error
