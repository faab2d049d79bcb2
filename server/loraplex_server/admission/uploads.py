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
    NoEffectError,
    QuotaExceededError,
    RequestIdReusedError,
    SignatureError,
    TooManyVersionsError,
    UploadBusyError,
    UploadMismatchError,
    VersionDeprecatedError,
    invalid,
)
from loraplex_adapters.storage_faults import disk_faults
from loraplex_server.admission.upload import Upload, UploadClaim, file_sizes
from loraplex_server.errors import UploadTooLargeError

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
    async def open(self, claim: UploadClaim | None = None) -> AsyncIterator[Upload]:
        """The claimed upload, with what arrived of it before; without an id: a new one that cannot be gone on with.

        Its folder is removed at the end; but where the upload has an id and breaks off, by an error that says nothing
        against the package, it is kept. Raises InvalidRequestError for an id out of range or a proof that is missing,
        UploadMismatchError where what is kept is of another adapter or package, UploadBusyError where another call is
        at it, QuotaExceededError where too many with an id go on already, StorageError.
        """
        if claim is not None and not claim.upload_id:
            claim = None
        beginning = asyncio.ensure_future(asyncio.to_thread(self._begin, claim))
        is_kept = False
        try:
            upload = await asyncio.shield(beginning)
            if claim is not None:
                await asyncio.to_thread(claim.check, upload.folder)
            yield upload
        except BaseException as error:
            is_kept = claim is not None and not isinstance(error, _AGAINST_THE_PACKAGE)
            raise
        finally:
            # A caller that is cancelled goes at once; its folder is seen to nevertheless.
            await asyncio.shield(self._end(beginning, is_kept))

    def received(self, upload_id: str) -> dict[str, int]:
        """Bytes that have arrived by file name. Raises AdapterNotFoundError, InvalidRequestError, StorageError."""
        with disk_faults():
            folder = self._folder_of(upload_id)
            if folder is None:
                raise AdapterNotFoundError(
                    f"no unfinished upload '{upload_id}'; it was finished, or never begun, or too long ago"
                )
            return file_sizes(folder)

    def purge(self) -> None:
        """Remove what broke off too long ago. To be called from time to time. Raises StorageError."""
        with disk_faults(), self._lock:
            for folder in self._named():
                if folder.name not in self._busy and self._clock() - folder.stat().st_mtime > self._keep_s:
                    log.info("removing an upload that was not finished")
                    self._remove(folder)

    def _begin(self, claim: UploadClaim | None) -> Upload:
        self.purge()
        with disk_faults(), self._lock:
            if claim is None:
                folder = Path(tempfile.mkdtemp(prefix=_UNNAMED_PREFIX, dir=self._root))
            else:
                folder = self._claimed(claim)
            self._busy.add(folder.name)
        return Upload(folder, self._max_bytes, self._reserve)

    def _claimed(self, claim: UploadClaim) -> Path:
        """With the lock held."""
        kept = self._folder_of(claim.upload_id)
        folder = self._root / f"{_of_id(claim.upload_id)}{claim.adapter.tenant}@{claim.adapter.adapter}"
        if kept is not None and kept != folder:
            raise UploadMismatchError(
                f"upload '{claim.upload_id}' was begun for another adapter; choose another upload_id"
            )
        if folder.name in self._busy:
            raise UploadBusyError(
                f"another call is at upload '{claim.upload_id}'; end it, or choose another id"
            )
        if kept is not None and claim.starts_over:
            self._remove(kept)
        if kept is None:
            self._make_room_for_another()
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _folder_of(self, upload_id: str) -> Path | None:
        """Where that upload is, of whichever adapter. Raises InvalidRequestError for an id out of range."""
        return next(self._root.glob(f"{_of_id(upload_id)}*"), None)

    async def _end(self, beginning: asyncio.Future[Upload], is_kept: bool) -> None:
        """Threads go on where their call was cancelled, so they are waited for before another call may be at it."""
        await asyncio.wait([beginning])
        if beginning.exception() is None:
            upload = beginning.result()
            await asyncio.to_thread(upload.close)
            await asyncio.to_thread(self._release, upload.folder, is_kept)

    def _release(self, folder: Path, is_kept: bool) -> None:
        with disk_faults(), self._lock:
            if is_kept and any(file_sizes(folder).values()):
                now = self._clock()
                os.utime(folder, (now, now))
            else:
                self._remove(folder)
            self._busy.discard(folder.name)

    def _remove(self, folder: Path) -> None:
        """With the lock held."""
        self._total_bytes -= sum(file_sizes(folder).values())
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


def _of_id(upload_id: str) -> str:
    """How the folder's name begins: an id and both parts of an adapter's name have no '@'."""
    if not _UPLOAD_ID.fullmatch(upload_id):
        raise invalid("upload_id", "must have 1 to 63 letters, digits, '-' and '_'")
    return f"{_NAMED_PREFIX}{upload_id}@"
