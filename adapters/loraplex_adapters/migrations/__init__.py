"""Brings a database of the registry to another revision of its tables; see `versions/` for what they are.

The newest is needed by this release. An operator who goes back to an older release first runs

    python -m loraplex_adapters.migrations URL 0001
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, inspect, text

from loraplex_adapters.errors import StorageError
from loraplex_adapters.registry_database import writing

HEAD = "head"
BEFORE_MIGRATIONS = "0001"
"""The revision of databases from before there were migrations, which have no version table."""

_COLUMNS_BEFORE_MIGRATIONS = {
    *("name", "digest", "state", "size_bytes", "rank", "target_modules", "served_module_count"),
    *("base_fingerprint", "created_at_us"),
}
_POSTGRESQL_LOCK = 0x10_AA_91_EC  # any number that nothing else in the database locks
_LOCK_ATTEMPTS = 300
_LOCK_PAUSE_S = 0.2
# Alembic reaches the running migration through names of its modules, so that one process can run one at a time.
_one_at_a_time = threading.Lock()


def migrate(engine: Engine, revision: str = HEAD) -> None:
    """Upgrade or downgrade to `revision` in one transaction, while other servers that start wait.

    Raises StorageError if the database fails, is of a newer release, or stays locked for a minute.
    """
    with _one_at_a_time, writing(engine) as connection:
        _wait_for_others(connection)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        config.attributes["connection"] = connection
        try:
            if _is_from_before_migrations(connection):
                command.stamp(config, BEFORE_MIGRATIONS)
            command.upgrade(config, revision) if revision == HEAD else command.downgrade(config, revision)
        except CommandError as error:
            raise StorageError(
                f"the registry's tables cannot be brought to revision {revision}: they may be of a newer release; "
                "update this server"
            ) from error


def _is_from_before_migrations(connection: Connection) -> bool:
    """Whether there are our tables without a version. Raises StorageError for those of another program."""
    tables = set(inspect(connection).get_table_names())
    if "adapters" not in tables or "alembic_version" in tables:
        return False
    columns = {str(column["name"]) for column in inspect(connection).get_columns("adapters")}
    if columns != _COLUMNS_BEFORE_MIGRATIONS:
        raise StorageError("the registry's database holds another program's tables; give it one of its own")
    return True


def _wait_for_others(connection: Connection) -> None:
    """SQLite's transaction has locked the file already; PostgreSQL needs a lock that covers making tables."""
    if connection.dialect.name == "sqlite":
        return
    for _ in range(_LOCK_ATTEMPTS):
        if connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _POSTGRESQL_LOCK}):
            return
        time.sleep(_LOCK_PAUSE_S)
    raise StorageError("another server is changing the registry's tables; try again later")
