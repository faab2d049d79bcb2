"""The folder of registry and packages, and who holds it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraplex_server.errors import DataDirInUseError

_LOCK_FILE = ".server-lock"


@contextmanager
def exclusive_use(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if missing, for this process; it is let go with the process, however that ends.

    Raises DataDirInUseError while another server holds it: the registry has one writer, and uploads are staged there.
    Raises NotADirectoryError where a file stands in its place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"the data folder {folder} is a file; name a folder as data_dir") from None
    with (folder / _LOCK_FILE).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirInUseError(
                f"another server uses the data folder {folder}; stop it or choose another data_dir"
            ) from None
        yield
