"""How the registry reaches its database: engines for SQLite and PostgreSQL, and the two kinds of transaction."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import QueuePool

from loraplex_adapters.errors import StorageError
from loraplex_adapters.storage_faults import database_faults

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BUSY_TIMEOUT_MS = 10_000  # how long a writer of SQLite waits for another
_SOCKET_TIMEOUT_S = (
    5  # for every message to PostgreSQL, the first included: a lost one is an error, not a wait
)
_STATEMENT_TIMEOUT_MS = 4_000  # shorter, so that waiting for another writer ends with an answer
# A writer whose machine was lost in mid-transaction must not hold up all others until TCP notices.
_IDLE_IN_TRANSACTION_TIMEOUT_MS = 10_000
_SILENCE_S = 1.0  # that nobody asks a database which has just kept somebody waiting in vain
_POSTGRESQL_OPTIONS = {"application_name", "sslmode", "sslrootcert", "unix_sock"}
_WAL_ATTEMPTS = 100
_WAL_PAUSE_S = 0.1
_IS_WRITING = "is_writing"
_SILENCE = "silence"


def to_us(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_us(microseconds: int) -> datetime:
    """The moment so many microseconds after the beginning of 1970, UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def open_engine(url: str) -> Engine:
    """An engine for "sqlite:///…", "postgresql://…" or "postgresql+pg8000://…"; nothing is connected yet.

    Raises StorageError for any other database, or if the driver is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StorageError(
            "the registry's URL is none, as postgresql://user@host/name is; correct it"
        ) from error
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite_engine(parsed)
        case "postgresql":
            return _postgresql_engine(parsed)
    raise StorageError("the registry's database must be SQLite or PostgreSQL; correct its URL")


def check_url(url: str) -> None:
    """Connects to nothing. Raises StorageError for what `open_engine` would not take."""
    open_engine(url).dispose()


class _Silence:
    """A database that let a call wait in vain is not asked for a moment: those who queued behind that call, for a turn
    or for a thread, hear it at once, and do not wait one after another. Any thread may use it.
    """

    def __init__(self) -> None:
        self._ends_s = 0.0  # of time.monotonic

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Raises StorageError while nobody asks."""
        if time.monotonic() < self._ends_s:
            raise StorageError("the registry does not answer; try again later")
        try:
            yield
        except StorageError as error:
            if _waited_in_vain(error):
                self._ends_s = time.monotonic() + _SILENCE_S
            raise


def _waited_in_vain(error: BaseException | None) -> bool:
    """Whether a message was not answered in time, whatever driver and SQLAlchemy made of that."""
    while error is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    return error is not None


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One state of the database, whatever is committed meanwhile. Raises StorageError."""
    with _heeding_silence(engine), database_faults(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Committed, durably, at the end of the block, or undone. Raises StorageError."""
    with (
        _heeding_silence(engine),
        database_faults(),
        engine.connect().execution_options(**{_IS_WRITING: True}) as connection,
        connection.begin(),
    ):
        yield connection


def _heeding_silence(engine: Engine) -> AbstractContextManager[None]:
    silence = engine.get_execution_options().get(_SILENCE)
    return nullcontext() if silence is None else silence.heeded()


def _sqlite_engine(url: URL) -> Engine:
    if url.database in (None, "", ":memory:"):
        # A database in memory lives in its one connection, which callers take in turn.
        engine = create_engine(
            url,
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            connect_args={"check_same_thread": False},
        )
    else:
        engine = create_engine(url)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """WAL lets readers pass a writer; FULL makes a commit survive a power cut (NORMAL may lose the last ones)."""
    connection.isolation_level = None  # Python's driver would begin a transaction by its own rules
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    _use_write_ahead_log(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _use_write_ahead_log(cursor: Any) -> None:
    """Of several processes that open a new file at once, one makes the change. SQLite does not wait for it by
    itself: the busy timeout does not cover it.
    """
    for attempt in range(_WAL_ATTEMPTS):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except Exception as error:
            if "locked" not in str(error) or attempt == _WAL_ATTEMPTS - 1:
                raise
            time.sleep(_WAL_PAUSE_S)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that first reads and then writes would fail, not wait, if another writer came between.
    is_writing = connection.get_execution_options().get(_IS_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")


def _postgresql_engine(url: URL) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+pg8000")
    if url.drivername != "postgresql+pg8000":
        raise StorageError("the registry reaches PostgreSQL as postgresql+pg8000://…; correct its URL")
    if unknown := url.query.keys() - _POSTGRESQL_OPTIONS:
        raise StorageError(f"the registry's URL may not have {', '.join(sorted(unknown))} behind its '?'")
    options = {"timeout": _SOCKET_TIMEOUT_S, "tcp_keepalive": True, "ssl_context": _ssl_context(url)}
    try:
        engine = create_engine(
            url.difference_update_query(["sslmode", "sslrootcert"]),
            pool_pre_ping=True,
            pool_timeout=_SOCKET_TIMEOUT_S,
            connect_args=options,
            execution_options={_SILENCE: _Silence()},
        )
    except ModuleNotFoundError as error:
        raise StorageError("PostgreSQL needs a driver: pip install 'loraplex[postgres]'") from error
    event.listen(engine, "connect", _prepare_postgresql)
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _ssl_context(url: URL) -> ssl.SSLContext | bool | None:
    """What the driver takes for the URL's `sslmode` and `sslrootcert`, which mean what they do for libpq.

    Raises StorageError.
    """
    root = url.query.get("sslrootcert")
    match url.query.get("sslmode", "prefer"):
        case "disable":
            return False
        case "prefer":
            return None
        case "require":
            return True
        case "verify-full" if isinstance(root, str | None):
            try:
                return ssl.create_default_context(cafile=root)
            except OSError as error:
                raise StorageError("the certificates that sslrootcert names cannot be read") from error
    raise StorageError("sslmode must be disable, prefer, require or verify-full, sslrootcert one file")


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET statement_timeout = {_STATEMENT_TIMEOUT_MS}")
    cursor.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_IN_TRANSACTION_TIMEOUT_MS}")
    connection.commit()
    cursor.close()


def _begin_postgresql(connection: Connection) -> None:
    # Writers stay with READ COMMITTED: behind the lock on the meta row they must see what was committed before it.
    if not connection.get_execution_options().get(_IS_WRITING, False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
