"""A folder that is there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loraplex_trainer.errors import OutputError


@contextmanager
def whole_folder(target: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """A new folder to write into; it becomes `target` when the block ends without error.

    may_replace  whether what stands at `target` is an earlier result, and may go. An empty folder always may.

    Raises OutputError where it cannot be written, or something else is there; `target` is then as it was.
    """
    if target.exists() and not (target.is_dir() and (may_replace(target) or not any(target.iterdir()))):
        raise OutputError(f"{target.name} is there already and holds something else; name another folder")
    with output_errors(target.name):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield work
            for path in work.iterdir():
                _sync(path)
            _sync(work)
            _replace(work, target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


@contextmanager
def output_errors(name: str) -> Iterator[None]:
    """Turns the system's errors of writing into OutputError; `name` is the file or folder, for people."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"{name} cannot be written: the disk is full; make room and run it again"
            ) from error
        raise OutputError(f"{name} cannot be written: {error.strerror or 'the system refuses it'}") from error


def _replace(work: Path, target: Path) -> None:
    """A folder cannot be renamed over another that is not empty: the old one steps aside first."""
    work.chmod(0o755)
    if not target.exists():
        work.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(aside / "old")
    try:
        work.rename(target)
    except OSError:
        (aside / "old").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
