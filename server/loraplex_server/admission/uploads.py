"""Uploads on their way in: private folders, bounded bytes, and what broke off kept for a while to go on with."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from loraplex_adapters.errors import (
    AdapterExistsError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    AdapterNotFoundError,
    AdapterTooLargeError,
    FieldViolation,
    InvalidRequestError,
    NoEffectError,
    QuotaExceededError,
    RequestIdReusedError,
    SignatureError,
    StorageError,
    TooManyVersionsError,
    UploadBusyError,
    VersionDeprecatedError,
)
from loraplex_adapters.storage_faults import disk_faults
from loraplex_server.admission.file_names import PACKAGE_FILES
from loraplex_server.errors import UploadTooLargeError

MAX_CHUNK_BYTES = 1 << 20
MAX_KEPT = 256  # uploads that broke off
_UPLOAD_ID = re.compile(r"[A-Za-z0-9_-]{1,63}")
_NAMED_PREFIX, _UNNAMED_PREFIX = "id-", "once-"

# What the same registration meets again, however often it is sent.
_AGAINST_THE_PACKAGE = (
    AdapterExistsError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    AdapterTooLargeError,
    NoEffectError,
    RequestIdReusedError,
    SignatureError,
    TooManyVersionsError,
    UploadTooLargeError,
    VersionDeprecatedError,
)

log = logging.getLogger(__name__)


class UploadStaging:
    """Owns a folder of unfinished uploads. Any thread may use it; what is not async blocks.

    What is in the files is the whole state, so uploads may be gone on with after a restart too.
    """

    def __init__(
        self,
        root: Path,
        max_bytes: int,
        *,
        max_total_bytes: int | None = None,
        keep_s: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_bytes` bounds one upload, `max_total_bytes` all that are here together (None: four of the largest).

        An upload that broke off is kept for `keep_s`, or until one that goes on needs its room. `clock` gives the
        seconds of the files' times. Raises StorageError.
        """
        self._root = root
        self._max_bytes = max_bytes
        self._max_total_bytes = max_total_bytes if max_total_bytes is not None else 4 * max_bytes
        self._keep_s = keep_s
        self._clock = clock
        self._lock = threading.Lock()
        self._busy: set[str] = set()  # names of folders that an upload is at
        with disk_faults():
            root.mkdir(parents=True, exist_ok=True)
            for folder in root.glob(f"{_UNNAMED_PREFIX}*"):  # a crash left them
                shutil.rmtree(folder)
            self._total_bytes = sum(file.stat().st_size for file in root.glob("*/*"))
        self.purge()

    @asynccontextmanager
    async def open(self, upload_id: str) -> AsyncIterator[Upload]:
        """The upload of that id, with what arrived of it before; empty: a new one that cannot be gone on with.

        Its folder is removed at the end; but where the upload has an id and breaks off, by an error that says nothing
        against the package, it is kept. Raises InvalidRequestError for an id out of range, UploadBusyError where
        another call is at it, QuotaExceededError where too many with an id go on already, StorageError.
        """
        upload = await asyncio.to_thread(self._begin, upload_id)
        is_kept = False
        try:
            yield upload
        except BaseException as error:
            is_kept = bool(upload_id) and not isinstance(error, _AGAINST_THE_PACKAGE)
            raise
        finally:
            # A caller that is cancelled goes at once; its folder is seen to nevertheless.
            await asyncio.shield(asyncio.to_thread(self._release, upload.folder, is_kept))

    def received(self, upload_id: str) -> dict[str, int]:
        """Bytes that have arrived by file name. Raises AdapterNotFoundError, InvalidRequestError, StorageError."""
        with disk_faults():
            folder = self._root / f"{_NAMED_PREFIX}{_checked(upload_id)}"
            if not folder.is_dir():
                raise AdapterNotFoundError(
                    f"no unfinished upload '{upload_id}'; it was finished, or never begun, or too long ago"
                )
            return _sizes(folder)

    def purge(self) -> None:
        """Remove what broke off too long ago. To be called from time to time. Raises StorageError."""
        with disk_faults(), self._lock:
            for folder in self._named():
                if folder.name not in self._busy and self._clock() - folder.stat().st_mtime > self._keep_s:
                    log.info("removing an upload that was not finished")
                    self._remove(folder)

    def _begin(self, upload_id: str) -> Upload:
        self.purge()
        return Upload(self._claim(upload_id), self._max_bytes, self._reserve)

    def _claim(self, upload_id: str) -> Path:
        with disk_faults(), self._lock:
            if not upload_id:
                folder = Path(tempfile.mkdtemp(prefix=_UNNAMED_PREFIX, dir=self._root))
            else:
                folder = self._root / f"{_NAMED_PREFIX}{_checked(upload_id)}"
                if folder.name in self._busy:
                    raise UploadBusyError(
                        f"another call is at upload '{upload_id}'; end it, or choose another id"
                    )
                if not folder.is_dir():
                    self._make_room_for_another()
                folder.mkdir(mode=0o700, exist_ok=True)
            self._busy.add(folder.name)
            return folder

    def _release(self, folder: Path, is_kept: bool) -> None:
        with disk_faults(), self._lock:
            if is_kept and any(_sizes(folder).values()):
                now = self._clock()
                os.utime(folder, (now, now))
            else:
                self._remove(folder)
            self._busy.discard(folder.name)

    def _remove(self, folder: Path) -> None:
        """With the lock held."""
        self._total_bytes -= sum(_sizes(folder).values())
        shutil.rmtree(folder, ignore_errors=True)

    def _reserve(self, num_bytes: int) -> None:
        """Raises QuotaExceededError where the uploads that go on would together become too large."""
        with self._lock:
            while self._total_bytes + num_bytes > self._max_total_bytes and self._remove_oldest_kept():
                pass
            if self._total_bytes + num_bytes > self._max_total_bytes:
                raise QuotaExceededError(
                    f"all together may take {self._max_total_bytes} bytes; try again when others have ended",
                    "uploads",
                )
            self._total_bytes += num_bytes

    def _make_room_for_another(self) -> None:
        """With the lock held. Raises QuotaExceededError where MAX_KEPT with an id go on."""
        if len(self._named()) >= MAX_KEPT and not self._remove_oldest_kept():
            raise QuotaExceededError(
                f"{MAX_KEPT} with an id may go on at once; try again when others have ended", "uploads"
            )

    def _remove_oldest_kept(self) -> bool:
        """With the lock held; False where none is kept that no call is at."""
        kept = [folder for folder in self._named() if folder.name not in self._busy]
        if not kept:
            return False
        log.info("removing an upload that was not finished, for the room it takes")
        self._remove(min(kept, key=lambda folder: folder.stat().st_mtime))
        return True

    def _named(self) -> list[Path]:
        return list(self._root.glob(f"{_NAMED_PREFIX}*"))


class Upload:
    """One upload that is going on. Used by one call, one piece at a time."""

    def __init__(self, folder: Path, max_bytes: int, reserve: Callable[[int], None]) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._reserve = reserve
        self._sizes = _sizes(folder)

    def count_files(self) -> None:
        """Count what was written into the folder by other means. Blocks. Raises QuotaExceededError."""
        sizes = _sizes(self.folder)
        added = sum(sizes.values()) - sum(self._sizes.values())
        self._sizes = sizes
        self._reserve(added)

    def append(self, file_name: str, offset: int, data: bytes) -> None:
        """Write a piece of a file behind what is there. Blocks.

        Raises InvalidRequestError, which says the expected offset where it is another one; UploadTooLargeError;
        QuotaExceededError where all uploads together are too large; StorageError.
        """
        if file_name not in PACKAGE_FILES:
            raise _invalid("chunk.file_name", f"must be one of {', '.join(PACKAGE_FILES)}")
        if not 1 <= len(data) <= MAX_CHUNK_BYTES:
            raise _invalid("chunk.data", f"must have 1 to {MAX_CHUNK_BYTES} bytes")
        expected = self._sizes.get(file_name, 0)
        if offset != expected:
            raise _invalid("chunk.offset", f"is {offset}, expected {expected}; send pieces in order")
        if sum(self._sizes.values()) + len(data) > self._max_bytes:
            raise UploadTooLargeError(f"the upload is larger than {self._max_bytes} bytes, the limit")
        self._reserve(len(data))
        try:
            with disk_faults():
                _write_at(self.folder / file_name, offset, data)
        except StorageError:
            self._reserve(-len(data))
            raise
        self._sizes[file_name] = expected + len(data)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """At its own place, so that a piece whose call was cancelled meanwhile cannot shift what another call writes."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
        file.seek(offset)
        file.write(data)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file that there is."""
    return {name: (folder / name).stat().st_size for name in PACKAGE_FILES if (folder / name).is_file()}


def _checked(upload_id: str) -> str:
    if not _UPLOAD_ID.fullmatch(upload_id):
        raise _invalid("upload_id", "must have 1 to 63 letters, digits, '-' and '_'")
    return upload_id


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, description)])
