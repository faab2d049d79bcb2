"""Which adapters exist: names, digests and states in SQL, so that they survive a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Engine, String, create_engine, event, func, make_url, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

from loraplex_adapters.errors import AdapterExistsError, AdapterNotFoundError
from loraplex_adapters.names import MAX_NAME_CHARACTERS, validate_adapter_name
from loraplex_adapters.storage_faults import database_faults

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BUSY_TIMEOUT_MS = 10_000  # how long a writer of SQLite waits for another


class AdapterState(StrEnum):
    """Where a registered adapter is in its life, as far as it must survive a restart."""

    READY = "ready"
    FAILED = "failed"  # its stored package is missing or damaged


@dataclass(frozen=True, slots=True)
class RegisteredAdapter:
    """One row of the registry, as it was when it was read."""

    name: str
    digest: str  # SHA-256 of the package, hex
    state: AdapterState
    size_bytes: int  # of the weights
    rank: int  # largest of any module
    target_modules: tuple[str, ...]  # sorted
    served_module_count: int  # (layer, module) pairs
    base_fingerprint: str
    created_at: datetime  # UTC


class _Base(DeclarativeBase):
    pass


class _AdapterRow(_Base):
    __tablename__ = "adapters"

    name: Mapped[str] = mapped_column(String(MAX_NAME_CHARACTERS), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), index=True)
    state: Mapped[str] = mapped_column(String(16))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    rank: Mapped[int]
    target_modules: Mapped[list[str]] = mapped_column(JSON)
    served_module_count: Mapped[int]
    base_fingerprint: Mapped[str] = mapped_column(String(64))
    # Microseconds since 1970: the one form of a moment in which all databases agree.
    created_at_us: Mapped[int] = mapped_column(BigInteger)


class _NameTakenError(Exception):
    """A row of that name is there."""


class AdapterRegistry:
    """Registered adapters. Calls block on the database (SQLite: well under 10 ms); any thread may make them.

    A call's effect is durable when it returns. Names are unique; several names may share a digest.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Open the database at a SQLAlchemy URL ("sqlite:////var/lib/loraplex/registry.db") and create its
        table.

        Here and in every call, a database that fails is a StorageError.
        """
        self._clock = clock
        with database_faults():
            self._engine = _open_engine(url)
            _Base.metadata.create_all(self._engine)

    def register(
        self,
        name: str,
        *,
        digest: str,
        size_bytes: int,
        rank: int,
        target_modules: tuple[str, ...],
        served_module_count: int,
        base_fingerprint: str,
    ) -> RegisteredAdapter:
        """Enter an adapter as READY. The same name and digest again returns the row, READY again if it had
        failed.

        Raises InvalidRequestError for the name, AdapterExistsError if it is taken by another digest.
        """
        fields = {
            "name": validate_adapter_name(name),
            "digest": digest,
            "state": AdapterState.READY,
            "size_bytes": size_bytes,
            "rank": rank,
            "target_modules": sorted(target_modules),
            "served_module_count": served_module_count,
            "base_fingerprint": base_fingerprint,
            "created_at_us": (self._clock() - _EPOCH) // timedelta(microseconds=1),
        }
        try:
            return self._insert(fields)
        except _NameTakenError:  # the database decides, so two callers cannot both win
            with suppress(AdapterNotFoundError):  # deleted just now: the name is free again
                return self._register_again(name, digest, base_fingerprint)
        return self._insert(fields)

    def get(self, name: str) -> RegisteredAdapter:
        """Raises AdapterNotFoundError."""
        with self._transaction() as session:
            return _adapter_of(_row_of(session, name))

    def list_page(self, page_size: int, after_name: str = "") -> list[RegisteredAdapter]:
        """Up to `page_size` adapters in order of name, beginning after `after_name`; fewer mean that it
        was the last.

        Adapters registered or deleted between two pages shift no others.
        """
        query = select(_AdapterRow).order_by(_AdapterRow.name).limit(page_size)
        if after_name:
            query = query.where(_AdapterRow.name > after_name)
        with self._transaction() as session:
            return [_adapter_of(row) for row in session.scalars(query)]

    def count(self) -> int:
        """How many adapters are registered, in any state."""
        with self._transaction() as session:
            return session.scalar(select(func.count()).select_from(_AdapterRow)) or 0

    def mark_failed(self, name: str) -> RegisteredAdapter:
        """Its package turned out missing or damaged. Raises AdapterNotFoundError."""
        with self._transaction() as session:
            row = _row_of(session, name)
            row.state = AdapterState.FAILED
            return _adapter_of(row)

    def delete(self, name: str) -> RegisteredAdapter:
        """Remove the row and return what it was. The package stays. Raises AdapterNotFoundError."""
        with self._transaction() as session:
            row = _row_of(session, name)
            session.delete(row)
            return _adapter_of(row)

    def close(self) -> None:
        """Close all connections. The registry may not be used afterwards."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        """Committed at the end of the block, or undone."""
        with database_faults(), Session(self._engine) as session, session.begin():
            yield session

    def _insert(self, fields: dict[str, Any]) -> RegisteredAdapter:
        with self._transaction() as session:
            row = _AdapterRow(**fields)
            session.add(row)
            try:
                session.flush()
            except IntegrityError as error:
                raise _NameTakenError from error
            return _adapter_of(row)

    def _register_again(self, name: str, digest: str, base_fingerprint: str) -> RegisteredAdapter:
        with self._transaction() as session:
            row = _row_of(session, name)
            if row.digest != digest:
                raise AdapterExistsError(
                    f"adapter '{name}' is registered with other weights (digest {row.digest[:12]}…); "
                    "delete it first or choose another name"
                )
            row.state = AdapterState.READY
            row.base_fingerprint = base_fingerprint
            return _adapter_of(row)


def _open_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.database in (None, "", ":memory:"):
        # A database in memory lives in its one connection.
        return create_engine(parsed, poolclass=StaticPool, connect_args={"check_same_thread": False})
    engine = create_engine(parsed)
    event.listen(engine, "connect", _make_durable)
    return engine


def _make_durable(connection: Any, _record: Any) -> None:
    """WAL lets readers pass a writer; FULL makes a commit survive a power cut (NORMAL may lose the last
    ones).
    """
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _row_of(session: Session, name: str) -> _AdapterRow:
    row = session.get(_AdapterRow, name)
    if row is None:
        raise AdapterNotFoundError(f"no adapter is registered as '{name[:MAX_NAME_CHARACTERS]}'")
    return row


def _adapter_of(row: _AdapterRow) -> RegisteredAdapter:
    return RegisteredAdapter(
        name=row.name,
        digest=row.digest,
        state=AdapterState(row.state),
        size_bytes=row.size_bytes,
        rank=row.rank,
        target_modules=tuple(row.target_modules),
        served_module_count=row.served_module_count,
        base_fingerprint=row.base_fingerprint,
        created_at=_EPOCH + timedelta(microseconds=row.created_at_us),
    )
