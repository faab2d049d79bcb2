"""Where jobs lie on this server's disk.

training/owner                 whose jobs these are: this server's name in the registry's database
training/incoming/             files of jobs that are being created
training/jobs/JOB/data/        what was sent with the recipe
                 /run/         what the trainer makes of it; the package is in run/package
                 /events.jsonl /output.log /outcome.json
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loraplex_adapters.storage_faults import disk_faults
from loraplex_server.training.messages import Outcome, decode_outcome


@dataclass(frozen=True, slots=True)
class JobFolder:
    """One job's files. Every method blocks and raises StorageError."""

    path: Path

    @property
    def data(self) -> Path:
        """What the recipe's paths are relative to, unless it is a folder of the operator."""
        return self.path / "data"

    @property
    def run(self) -> Path:
        """The trainer's."""
        return self.path / "run"

    @property
    def package(self) -> Path:
        """The adapter, once the trainer has written it."""
        return self.run / "package"

    @property
    def neighbours(self) -> Path:
        """Other adapters that the gate looks at."""
        return self.path / "neighbours"

    @property
    def events(self) -> Path:
        """Of EventLog."""
        return self.path / "events.jsonl"

    @property
    def output(self) -> Path:
        """What the process wrote to its standard error, bounded."""
        return self.path / "output.log"

    @property
    def outcome_file(self) -> Path:
        """Written by the process, whole or not at all."""
        return self.path / "outcome.json"

    def exists(self) -> bool:
        """Whether it is on this disk."""
        return self.path.is_dir()

    def outcome(self) -> Outcome | None:
        """How the last attempt ended; None if it did not come to its end."""
        with disk_faults():
            if not self.outcome_file.exists():
                return None
            content = self.outcome_file.read_bytes()
        try:
            return decode_outcome(content)
        except msgspec.MsgspecError:
            return None

    def begin_attempt(self) -> None:
        """Forget how the attempt before this one ended."""
        with disk_faults():
            self.outcome_file.unlink(missing_ok=True)
            self.run.mkdir(exist_ok=True)

    def drop_scratch(self) -> None:
        """Nothing will go on from the checkpoints."""
        with disk_faults():
            for folder in (self.run / "checkpoints", self.neighbours):
                shutil.rmtree(folder, ignore_errors=True)


class JobFolders:
    """All of a server's jobs on disk. Every method blocks and raises StorageError."""

    def __init__(self, root: Path) -> None:
        """`root` is made if missing; what half-created jobs left is removed."""
        self._root = root
        with disk_faults():
            shutil.rmtree(root / "incoming", ignore_errors=True)
            for name in ("incoming", "jobs"):
                (root / name).mkdir(parents=True, exist_ok=True)
            self.owner = _owner(root / "owner")

    def of(self, job: str) -> JobFolder:
        """Where a job is, or would be."""
        return JobFolder(self._root / "jobs" / job)

    def receive(self, files: Mapping[str, bytes]) -> Path:
        """Write files, by their checked relative names, into a new folder of `incoming`."""
        with disk_faults():
            folder = self._root / "incoming" / secrets.token_hex(8)
            folder.mkdir()
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return folder

    def keep(self, received: Path, job: str) -> JobFolder:
        """Make received files a job's."""
        with disk_faults():
            folder = self.of(job)
            folder.path.mkdir()
            os.rename(received, folder.data)
            return folder

    def discard(self, folder: Path) -> None:
        """Remove received files, or a job's folder that no row names."""
        shutil.rmtree(folder, ignore_errors=True)


def _owner(file: Path) -> str:
    """The server's own name, drawn when its data folder is first used."""
    if not file.exists():
        part = file.with_suffix(".part")
        part.write_text(secrets.token_hex(16))
        os.replace(part, file)
    return file.read_text().strip()
