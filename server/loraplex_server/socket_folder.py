"""Where the sockets of an engine process lie, and how the folders of servers that were killed are told from these."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "loraplex-engine-"
_UNLOCKED_PREFIX = "loraplex-new-engine-"  # for the instant before a folder is locked
_UNLOCKED_FOR_S = 3600.0  # far longer than that instant
_LOCK_FILE = "lock"

log = logging.getLogger(__name__)


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A private folder with a short path, as sockets need it, below the machine's folder of temporary files.

    It is removed at the end, or else by the next server of this user that enters here: nothing tells a killed server.
    """
    remove_leftovers()
    unlocked = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX))
    with (unlocked / _LOCK_FILE).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends, however it does
        folder = unlocked.rename(unlocked.with_name(unlocked.name.replace(_UNLOCKED_PREFIX, _PREFIX, 1)))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove this user's folders whose process has gone."""
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another server removes it too
            if _is_ours(folder) and _is_unlocked(folder):
                log.info("removing what a killed server left", extra={"folder": folder.name})
                shutil.rmtree(folder)
    for folder in root.glob(f"{_UNLOCKED_PREFIX}*"):
        with suppress(OSError):
            if _is_ours(folder) and time.time() - folder.stat().st_mtime > _UNLOCKED_FOR_S:
                shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    """Anybody may make such a name; what is in a folder of another user is not to be touched."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _is_unlocked(folder: Path) -> bool:
    with (folder / _LOCK_FILE).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
