"""One package on its way to the server, gone on with where the way broke off."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from loraplex.v1 import adapter_pb2
from loraplex_client.adapter_requests import drawn_id
from loraplex_client.errors import (
    ConflictError,
    DeadlineError,
    LoraplexApiError,
    PreconditionError,
    UnavailableError,
)
from loraplex_client.retry import RetryBudget

UPLOAD_CHUNK_BYTES = 2**20
UPLOAD_FILES = ("adapter_config.json", "adapter_model.safetensors")
OPTIONAL_UPLOAD_FILES = ("manifest.json", "model.sig")
"""Sent where the folder has them: what the trainer wrote about the package, and a signature."""

UploadProgress = Callable[[int, int], None]
"""Called with (bytes sent, bytes in all), from the thread that reads the files."""

MAX_RESUMES = 24
"""In a row that bring not a byte further. With their pauses about a minute, which a restarting server needs."""


class Upload:
    """What to send in the next attempt, and whether there is one. Used by one caller at a time."""

    def __init__(
        self,
        registration: adapter_pb2.Registration,
        folder: Path,
        upload_id: str | None,
        timeout_s: float | None,
        on_progress: UploadProgress | None = None,
    ) -> None:
        """`upload_id` None: a new one; empty: a broken upload is given up. Raises FileNotFoundError."""
        check_upload_files(folder)
        self._registration = registration
        self._folder = folder
        self._upload_id = drawn_id() if upload_id is None else upload_id
        self._on_progress = on_progress
        self._budget = RetryBudget(timeout_s)
        self._received: Mapping[str, int] = {}
        self._starts_over = False
        self._has_sent_data = False
        self._is_broken = False
        self._may_be_known = bool(upload_id)  # from an earlier process

    @property
    def timeout_s(self) -> float | None:
        """What is left for the next call."""
        return self._budget.timeout_s

    @property
    def must_ask(self) -> bool:
        """Whether the server may have a part already, and must be asked before the next attempt."""
        return (self._is_broken or self._may_be_known) and not self._starts_over

    @property
    def state_request(self) -> adapter_pb2.GetUploadRequest:
        """Asks the server what it has."""
        return adapter_pb2.GetUploadRequest(upload_id=self._upload_id)

    def messages(self) -> Iterator[adapter_pb2.UploadAdapterRequest]:
        """The messages of the next attempt, read as they are sent. Raises OSError where a file cannot be read."""
        for message in upload_requests(
            self._registration,
            self._folder,
            self._upload_id,
            self._received,
            self._on_progress,
            start_over=self._starts_over,
        ):
            if message.HasField("chunk") and not self._has_sent_data:
                self._has_sent_data = True
                self._budget.renew(MAX_RESUMES)
            yield message

    def pause_s(self, failure: LoraplexApiError) -> float | None:
        """Seconds to wait before the next attempt; None: give the failure to the caller."""
        if not self._upload_id:
            return None
        is_of_other_files = failure.reason == "UPLOAD_MISMATCH" and not self._starts_over
        self._starts_over = is_of_other_files
        if is_of_other_files:
            self._received = {}
            return self._budget.pause_s(failure, (PreconditionError,))
        # After a break the server may hold on to the lost call for a while, and refuses another with its id.
        conflict = (ConflictError,) if self._is_broken else ()
        pause_s = self._budget.pause_s(failure, (UnavailableError, DeadlineError, *conflict))
        self._is_broken = pause_s is not None
        return pause_s

    def go_on_from(self, received: Mapping[str, int]) -> None:
        """Send nothing again of these bytes, given by file."""
        if sum(received.values()) > sum(self._received.values()):
            self._budget.renew(MAX_RESUMES)
        self._received = dict(received)


def upload_requests(
    registration: adapter_pb2.Registration,
    folder: Path,
    upload_id: str = "",
    received: Mapping[str, int] | None = None,
    on_progress: UploadProgress | None = None,
    *,
    start_over: bool = False,
) -> Iterator[adapter_pb2.UploadAdapterRequest]:
    """Header and pieces, but for the first `received` bytes of each file, of which the header has the SHA-256.

    Raises OSError.
    """
    received = received or {}
    with ExitStack() as open_files:
        # Opened once: what a proof is of and what is sent are one file, though another takes its place meanwhile.
        files = {
            name: open_files.enter_context((folder / name).open("rb"))
            for name in (*UPLOAD_FILES, *OPTIONAL_UPLOAD_FILES)
            if (folder / name).is_file()
        }
        total = sum(os.fstat(file.fileno()).st_size for file in files.values())
        sent = sum(received.get(name, 0) for name in files)
        header = adapter_pb2.UploadAdapterRequest.Header(
            registration=registration,
            upload_id=upload_id,
            received_sha256={name: _sha256(files.get(name), size) for name, size in received.items()},
            start_over=start_over,
        )
        yield adapter_pb2.UploadAdapterRequest(header=header)
        for name, file in files.items():
            for chunk in _chunks(name, file, received.get(name, 0)):
                yield adapter_pb2.UploadAdapterRequest(chunk=chunk)
                sent += len(chunk.data)
                if on_progress is not None:
                    on_progress(sent, total)


def check_upload_files(folder: Path) -> None:
    """Raises FileNotFoundError naming what is missing, before anything is sent; NotADirectoryError for a file."""
    if not folder.exists():
        raise FileNotFoundError(f"no folder '{folder}'")
    if not folder.is_dir():
        raise NotADirectoryError(f"'{folder}' is a file; give the folder of the adapter")
    for file_name in UPLOAD_FILES:
        if not (folder / file_name).is_file():
            raise FileNotFoundError(f"'{folder}' is no PEFT folder: it has no {file_name}")


def _sha256(file: BinaryIO | None, num_bytes: int) -> str:
    """Of the first so many bytes, or of all where there are fewer: then it is not the file that the server has."""
    digest = hashlib.sha256()
    while file is not None and num_bytes and (data := file.read(min(num_bytes, UPLOAD_CHUNK_BYTES))):
        digest.update(data)
        num_bytes -= len(data)
    return digest.hexdigest()


def _chunks(name: str, file: BinaryIO, offset: int) -> Iterator[adapter_pb2.UploadAdapterRequest.Chunk]:
    file.seek(offset)
    while data := file.read(UPLOAD_CHUNK_BYTES):
        yield adapter_pb2.UploadAdapterRequest.Chunk(file_name=name, offset=offset, data=data)
        offset += len(data)
