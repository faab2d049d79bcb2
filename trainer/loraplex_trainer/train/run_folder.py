"""The folder of one run: where everything lies, and its state, which only ever changes as a whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loraplex_trainer.errors import RunFolderError, TrainingStorageError

Status = Literal["running", "paused", "finished", "failed", "cancelled"]
_LOCK_FILE = ".lock"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Libraries that write through C say it in words only.
_NO_ROOM_WORDS = ("no space left", "file write failed", "disk quota", "os error 28", "file too large")


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands. A process that is killed leaves "running" behind."""

    status: Status
    stage: str
    stages_done: int
    recipe_sha256: str
    data_sha256: str
    message: str = ""  # why it failed or paused
    seconds: float = 0.0  # of training, over all resumptions


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe as it was given."""
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """The recipe without "auto"."""
        return self.path / "resolved.yaml"

    @property
    def plan(self) -> Path:
        """The plan that was followed, JSON."""
        return self.path / "plan.json"

    @property
    def data(self) -> Path:
        """Folder of the built data."""
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        """One folder for each stage, named by `stage_folder`."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Folder of the best adapter: PEFT's two files."""
        return self.path / "best"

    @property
    def metrics(self) -> Path:
        """JSON Lines of scalars by step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of event files."""
        return self.path / "tensorboard"

    @property
    def samples(self) -> Path:
        """JSON Lines of answers to the typical questions."""
        return self.path / "samples.jsonl"

    @property
    def overfit_patch(self) -> Path:
        """A change of the recipe, written by the overfit alarm."""
        return self.path / "overfit.patch.yaml"

    @property
    def report(self) -> Path:
        """The report, JSON."""
        return self.path / "report.json"

    @property
    def report_page(self) -> Path:
        """The report with its plots, one page."""
        return self.path / "report.html"

    @property
    def state(self) -> Path:
        """Status and progress, JSON."""
        return self.path / "state.json"

    @property
    def package(self) -> Path:
        """Folder of what is registered."""
        return self.path / "package"

    @property
    def eval(self) -> Path:
        """What the judge measured."""
        return self.path / "eval.json"

    @property
    def gate(self) -> Path:
        """The gate's verdict."""
        return self.path / "gate.json"

    def stage_data(self, stage: str) -> Path:
        """Folder of the built data of a stage with its own sources."""
        return self.path / f"data-{stage}"

    def stage_folder(self, index: int, stage: str) -> Path:
        """Checkpoints of one stage."""
        return self.checkpoints / f"{index:02d}-{stage}"

    def read_state(self) -> RunState:
        """Raises RunFolderError where no run is."""
        try:
            return RunState(**json.loads(self.state.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RunFolderError(
                f"'{self.path.name}' holds no run to resume; start one without --resume"
            ) from error

    def write_state(self, state: RunState) -> None:
        """Replaces the state: a reader, or a resumed run, sees the old one or the new one."""
        write_json(self.state, asdict(state))

    def change_state(self, **changes: Any) -> RunState:
        """Replaces some fields of the state."""
        state = replace(self.read_state(), **changes)
        self.write_state(state)
        return state

    @property
    def is_begun(self) -> bool:
        """Whether a run was started here."""
        return self.state.is_file()


def write_json(path: Path, document: Any) -> None:
    """Write as a whole: a reader sees the old content or the new one."""
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write as a whole: a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; none where there is no file. A last line cut off by a kill is left out."""
    if not path.is_file():
        return []
    found = []
    # Not splitlines: an answer may hold U+2028, which ends no line of JSON.
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def append_line(path: Path, document: dict[str, Any]) -> None:
    """Add an object to a JSON Lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(document, ensure_ascii=False) + "\n")


@contextmanager
def alone_in(run: RunFolder) -> Iterator[None]:
    """Nobody else trains in the folder: two processes would write over each other's checkpoints.

    The system lets go of the lock when its holder ends, however it does. Raises RunFolderError.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / _LOCK_FILE).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"another process trains in '{run.path.name}'; wait for its end, or end it"
            ) from None
        yield


@contextmanager
def storage_faults() -> Iterator[None]:
    """Turns a full disk, however a library tells of it, into TrainingStorageError."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise TrainingStorageError(
            "the disk of the run folder is full; make room and go on with --resume"
        ) from error


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return True
    return any(words in str(error).lower() for words in _NO_ROOM_WORDS)
