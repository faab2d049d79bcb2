"""What the disk or the database says, as an error of ours: the caller gets no path, the log gets the cause."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from loraplex_adapters.errors import StorageError

log = logging.getLogger(__name__)


@contextmanager
def disk_faults() -> Iterator[None]:
    """Raises StorageError in place of OSError."""
    try:
        yield
    except OSError as error:
        log.error("the disk failed", extra={"cause": str(error)})
        raise StorageError(
            f"the server's disk fails ({error.strerror or type(error).__name__}); try again later"
        ) from error


@contextmanager
def database_faults() -> Iterator[None]:
    """Raises StorageError in place of SQLAlchemy's errors, and of those that a driver lets through."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        log.error("the registry's database failed", extra={"cause": str(getattr(error, "orig", error))})
        raise StorageError("the registry cannot be used; try again later") from error
