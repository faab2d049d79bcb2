"""One upload: what a call says of it, and its bytes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loraplex_adapters.errors import StorageError, UploadBusyError, UploadMismatchError, invalid
from loraplex_adapters.names import AdapterName
from loraplex_adapters.storage_faults import disk_faults
from loraplex_server.admission.file_names import PACKAGE_FILES
from loraplex_server.errors import UploadTooLargeError

MAX_CHUNK_BYTES = 1 << 20
_WAYS_OUT = "set start_over to send all of it again, or choose another upload_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadClaim:
    """What a call says of the upload that it begins or goes on with."""

    upload_id: str
    adapter: AdapterName
    received_sha256: Mapping[str, str] = field(
        default_factory=dict
    )  # by file, of what is not sent again; small hex digits
    has_digest: bool = False  # of the whole package: it is checked in the end, and proves what was kept too
    starts_over: bool = False  # nothing is gone on with

    def check(self, folder: Path) -> None:
        """Prove that what is in `folder` is of the package that the call goes on with. Blocks: it may read all of it.

        Raises InvalidRequestError where a proof is missing, UploadMismatchError where it is of other bytes,
        StorageError.
        """
        unproved = [name for name in file_sizes(folder) if name not in self.received_sha256]
        if unproved and not self.has_digest:
            raise invalid(
                "received_sha256",
                f"must have the SHA-256 of what GetUpload tells of {', '.join(unproved)}, which earlier calls sent; "
                f"{_WAYS_OUT}",
            )
        for name, claimed in self.received_sha256.items():
            if claimed != _sha256_of_kept(folder, name):
                raise UploadMismatchError(
                    f"what upload '{self.upload_id}' has of {name[:64]} is not the beginning of this file; {_WAYS_OUT}"
                )


class Upload:
    """One upload that is going on. Used by one call, one piece at a time, in any thread."""

    def __init__(self, folder: Path, max_bytes: int, reserve: Callable[[int], None]) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._reserve = reserve
        self._sizes = file_sizes(folder)
        self._how_to_send = (
            f"begin where GetUpload tells; {_WAYS_OUT}" if self._sizes else "send pieces in order"
        )
        self._writing = threading.Lock()
        self._is_over = False

    def close(self) -> None:
        """Nothing is written from now on; what is being written is waited for.

        The thread of a cancelled call goes on: what it has yet to write must not get into the next call's files.
        """
        with self._writing:
            self._is_over = True

    def count_files(self) -> None:
        """Count what was written into the folder by other means. Blocks. Raises QuotaExceededError."""
        sizes = file_sizes(self.folder)
        added = sum(sizes.values()) - sum(self._sizes.values())
        self._sizes = sizes
        self._reserve(added)

    def append(self, file_name: str, offset: int, data: bytes) -> None:
        """Write a piece of a file behind what is there. Blocks.

        Raises InvalidRequestError, which says the expected offset where it is another one; UploadTooLargeError;
        QuotaExceededError where all uploads together are too large; UploadBusyError once it is closed; StorageError.
        """
        with self._writing:
            if self._is_over:
                raise UploadBusyError("this call is not at the upload any more")
            self._append(file_name, offset, data)

    def _append(self, file_name: str, offset: int, data: bytes) -> None:
        if file_name not in PACKAGE_FILES:
            raise invalid("chunk.file_name", f"must be one of {', '.join(PACKAGE_FILES)}")
        if not 1 <= len(data) <= MAX_CHUNK_BYTES:
            raise invalid("chunk.data", f"must have 1 to {MAX_CHUNK_BYTES} bytes")
        expected = self._sizes.get(file_name, 0)
        if offset != expected:
            raise invalid("chunk.offset", f"is {offset}, expected {expected}; {self._how_to_send}")
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


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file that there is."""
    return {name: (folder / name).stat().st_size for name in PACKAGE_FILES if (folder / name).is_file()}


def _sha256_of_kept(folder: Path, name: str) -> str:
    """That of nothing where nothing is kept, or no package has such a file."""
    if name not in PACKAGE_FILES or not (folder / name).is_file():
        return hashlib.sha256().hexdigest()
    with disk_faults(), (folder / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
