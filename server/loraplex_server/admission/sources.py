"""Where packages may come from: a folder under one of the configured roots, or a URL of an allowed scheme."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote

import fsspec

from loraplex_adapters.errors import AdapterInvalidError, LoraplexError, SourceUnavailableError, invalid
from loraplex_adapters.package import open_package_file
from loraplex_adapters.storage_faults import disk_faults
from loraplex_server.admission.file_names import OPTIONAL_FILES, PACKAGE_FILES
from loraplex_server.admission.http_source import HttpFolder, PrivateHostError
from loraplex_server.admission.source_faults import Fault, explanation, fault_of, missing_library, silence
from loraplex_server.admission.url_policy import UrlPolicy

_CHUNK_BYTES = 1024 * 1024
_BLOCK_BYTES = 4 * 1024 * 1024  # what a remote file system reads ahead
_PARTING_S = 2.0  # how long a thread that was told to stop may keep its caller

log = logging.getLogger(__name__)


class SourceFolder(Protocol):
    """A folder to copy files from, somewhere."""

    def open(self, name: str) -> AbstractContextManager[Any]:
        """A file to `read(num_bytes)`. Raises FileNotFoundError or PermissionError, or whatever else fails."""


def confined(path: str, roots: Iterable[Path], field: str = "path") -> Path:
    """The folder that the absolute `path` names, links resolved. Blocks.

    Raises InvalidRequestError, which names `field`, unless it is a folder under one of `roots`.
    """
    folder = Path(path)
    # What no file can be called, a loop of links (RuntimeError up to Python 3.12) or a folder that may not be read.
    with suppress(OSError, RuntimeError, ValueError):
        resolved = folder.resolve()
        is_confined = any(resolved.is_relative_to(root.resolve()) for root in roots)
        if folder.is_absolute() and is_confined and resolved.is_dir():
            return resolved
    raise invalid(field, "must be an absolute path of a folder under one of the server's adapter_roots")


async def fetch_url(
    url: str,
    into: Path,
    policy: UrlPolicy,
    roots: Iterable[Path],
    max_bytes: int,
    timeout_s: float,
    *,
    allow_private_hosts: bool = False,
) -> None:
    """Copy the package files of the folder at `url` into the empty folder `into`; no others are looked at.

    `max_bytes` bounds all files together, whatever sizes the source claims; `timeout_s` bounds the time in which
    nothing arrives. `policy` says which URLs are allowed; `file` is confined to `roots`, as a path is; for `http` and
    `https`, see `http_source` for what hosts are refused. With whose credentials other schemes are read, and where, is
    up to their libraries' own settings on this machine, which a URL cannot change: it may have no user, query or
    fragment there, nor chain file systems ("a::b").

    Cancelling ends the copy at its next piece. Raises InvalidRequestError for a URL that is not allowed,
    SourceUnavailableError for what cannot be read, AdapterInvalidError for more than `max_bytes`, StorageError.
    """
    parts = policy.parse(url)
    loop = asyncio.get_running_loop()
    copied: asyncio.Future[None] = loop.create_future()
    copy = _Copy(
        lambda: _open_folder(url, parts, roots, timeout_s, allow_private_hosts), into, parts.scheme, max_bytes
    )

    def run() -> None:
        error = copy.run()
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, copied, error)

    # Not of the loop's pool: a library that hangs keeps its thread for ever, and must not keep the others'.
    threading.Thread(target=run, name="adapter-source", daemon=True).start()
    try:
        while not copied.done():
            idle_s = time.monotonic() - copy.last_progress
            if idle_s >= timeout_s:
                raise SourceUnavailableError(silence(timeout_s, parts.scheme))
            await asyncio.wait({copied}, timeout=timeout_s - idle_s)
        copied.result()
    finally:
        copy.is_cancelled = True
        if not copied.done():  # the caller is about to remove the folder
            with suppress(TimeoutError):
                async with asyncio.timeout(_PARTING_S):
                    await asyncio.wait({copied})


class _Copy:
    """One copy, in a thread of its own. The event loop reads `last_progress` and sets `is_cancelled`."""

    def __init__(
        self, open_folder: Callable[[], SourceFolder], into: Path, scheme: str, max_bytes: int
    ) -> None:
        self._open_folder = open_folder
        self._into = into
        self._scheme = scheme
        self._max_bytes = max_bytes
        self._left = max_bytes
        self.last_progress = time.monotonic()
        self.is_cancelled = False

    def run(self) -> LoraplexError | None:
        """What went wrong, as an error of ours; None where all is copied or nobody waits any more."""
        name = PACKAGE_FILES[0]
        try:
            folder = self._open_folder()
            for name in PACKAGE_FILES:
                self._copy_file(folder, name)
        except LoraplexError as error:
            return error
        except Exception as error:  # every library has errors of its own
            log.warning("an adapter's source cannot be read", extra={"cause": type(error).__name__})
            return SourceUnavailableError(explanation(fault_of(error), error, self._scheme, name))
        return None

    def _copy_file(self, folder: SourceFolder, name: str) -> None:
        try:
            with folder.open(name) as reader:
                self._write(reader, name)
        except PrivateHostError:
            raise SourceUnavailableError(
                "the URL leads to a private address, which this server's settings do not allow"
            ) from None
        except LoraplexError:
            raise
        except Exception as error:
            # Some stores answer "forbidden" for what does not exist.
            if name not in OPTIONAL_FILES or fault_of(error) not in (Fault.MISSING, Fault.FORBIDDEN):
                raise

    def _write(self, reader: Any, name: str) -> None:
        with disk_faults():
            file = (self._into / name).open("xb")
        with file:
            while not self.is_cancelled and (chunk := reader.read(min(_CHUNK_BYTES, self._left + 1))):
                self.last_progress = time.monotonic()
                self._left -= len(chunk)
                if self._left < 0:
                    raise AdapterInvalidError(f"the source has more than {self._max_bytes} bytes, the limit")
                with disk_faults():
                    file.write(chunk)


class _LocalFolder:
    """A folder of this machine that was found to be under the roots."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str) -> AbstractContextManager[Any]:
        if not os.path.lexists(self._folder / name):
            raise FileNotFoundError(name)
        return open_package_file(self._folder, name)


class _RemoteFolder:
    """A folder of a file system that fsspec knows."""

    def __init__(self, url: str, scheme: str) -> None:
        self._files = _file_system(scheme)
        self._root = str(self._files._strip_protocol(url)).rstrip("/")

    def open(self, name: str) -> AbstractContextManager[Any]:
        self._files.invalidate_cache()  # the folder may have been written since it was last listed
        reader: AbstractContextManager[Any] = self._files.open(
            f"{self._root}/{name}",
            "rb",
            block_size=_BLOCK_BYTES,
            cache_type="readahead",  # some read ahead by hundreds of megabytes of themselves
        )
        return reader


def _file_system(scheme: str) -> Any:
    try:
        return fsspec.filesystem(scheme)
    except ImportError:
        raise SourceUnavailableError(missing_library(scheme)) from None


def _open_folder(
    url: str, parts: SplitResult, roots: Iterable[Path], timeout_s: float, allow_private_hosts: bool
) -> SourceFolder:
    """Blocks. Raises InvalidRequestError, SourceUnavailableError, and what the libraries raise."""
    match parts.scheme:
        case "file" | "local":
            return _LocalFolder(confined(unquote(parts.path), roots, "url"))
        case "http" | "https":
            return HttpFolder(parts, timeout_s, allow_private_hosts)
        case scheme:
            return _RemoteFolder(url, scheme)


def _settle(copied: asyncio.Future[None], error: LoraplexError | None) -> None:
    if copied.done():
        return
    if error is None:
        copied.set_result(None)
    else:
        copied.set_exception(error)
