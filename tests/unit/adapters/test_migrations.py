"""Databases of older releases come along with their rows, and may go back."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    inspect,
    select,
    text,
)

from loraplex_adapters.errors import StorageError
from loraplex_adapters.migrations import migrate
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.registry_database import open_engine, writing
from loraplex_adapters.registry_schema import metadata
from loraplex_adapters.releases import OnExisting, Version, VersionState
from tests.support.postgres import PostgresServer
from tests.unit.adapters.registry_processes import open_and_count
from tests.unit.adapters.release_case import A, B, version

# As the release before migrations made it.
old_adapters = Table(
    "adapters",
    MetaData(),
    Column("name", String(128), primary_key=True),
    Column("digest", String(64), index=True, nullable=False),
    Column("state", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("target_modules", JSON, nullable=False),
    Column("served_module_count", Integer, nullable=False),
    Column("base_fingerprint", String(64), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
)

# Old names, and what they must be called now.
NAMES = {
    "a": "a",
    "a/b": "a/b",
    "a/b/c.d": "a/b.c.d",
    "tenants/finance/adapters/faq": "finance/faq",
    "default/x": "x",
    "t/base": "t/base",
    "x" * 63: "x" * 63,
}
# Those that need a name of another kind: too long, reserved, or taken.
ODD_NAMES = ["x" * 64, "y" * 64 + "/" + "z" * 63, "default/base", "a/b.c/d", "default/a"]


def old_row(name: str, **fields: Any) -> dict[str, Any]:
    defaults = {
        "name": name,
        "digest": A,
        "state": "ready",
        "size_bytes": 2**40,
        "rank": 8,
        "target_modules": ["q_proj", "v_proj"],
        "served_module_count": 60,
        "base_fingerprint": "f" * 64,
        "created_at_us": 1_767_323_045_678_901,
    }
    return {**defaults, **fields}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An empty database."""
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def fill(engine: Engine, rows: list[dict[str, Any]]) -> None:
    with writing(engine) as connection:
        old_adapters.metadata.create_all(connection)
        connection.execute(old_adapters.insert(), rows)


def old_rows(engine: Engine) -> list[dict[str, Any]]:
    with writing(engine) as connection:
        query = select(old_adapters).order_by(old_adapters.c.name)
        return sorted(
            (dict(row) for row in connection.execute(query).mappings()), key=lambda r: str(r["name"])
        )


def test_adapters_of_the_release_before_migrations_come_along(engine: Engine, database_url: str) -> None:
    rows = [old_row(name, digest=f"{i:064x}") for i, name in enumerate(NAMES)]
    fill(engine, [*rows, old_row("broken", state="failed", digest=B)])

    registry = AdapterRegistry(database_url)

    found = {adapter.name: adapter for adapter in registry.list_page(100)}
    assert set(found) == {AdapterName.parse(name) for name in (*NAMES.values(), "broken")}
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    for i, (old, new) in enumerate(NAMES.items()):
        adapter = found[AdapterName.parse(new)]
        assert adapter.versions == (
            Version(
                digest=f"{i:064x}",
                size_bytes=2**40,
                num_elements=2**39,
                rank=8,
                target_modules=("q_proj", "v_proj"),
                served_module_count=60,
                base_fingerprint="f" * 64,
                created_at=moment,
            ),
        )
        assert adapter.aliases == {"stable": f"{i:064x}"}
        assert (adapter.created_at, adapter.updated_at) == (moment, moment)
        assert adapter.labels == ({} if old == new else {"renamed-from": old})
    assert found[AdapterName("default", "broken")].stable.state is VersionState.FAILED
    assert registry.revision() == 0
    # What came along can be changed, and new ones find a place beside it.
    registry.register(AdapterName("default", "a"), version(B), on_existing=OnExisting.PROMOTE)
    registry.register(AdapterName("default", "new"), version(B))
    assert registry.count() == len(NAMES) + 2
    registry.close()


def test_every_old_name_gets_a_name_of_its_own_that_is_valid(engine: Engine, database_url: str) -> None:
    fill(engine, [old_row(name) for name in (*NAMES, *ODD_NAMES)])

    registry = AdapterRegistry(database_url)

    adapters = registry.list_page(100)
    assert len(adapters) == len(NAMES) + len(ODD_NAMES)
    for adapter in adapters:
        assert AdapterName.parse(str(adapter.name)) == adapter.name
    assert {adapter.labels.get("renamed-from") for adapter in adapters} >= set(ODD_NAMES)
    registry.close()


def test_going_back_restores_the_old_rows(engine: Engine, database_url: str) -> None:
    rows = [old_row(name, digest=f"{i:064x}") for i, name in enumerate((*NAMES, *ODD_NAMES))]
    rows.append(old_row("broken", state="failed"))
    fill(engine, rows)
    before = old_rows(engine)
    migrate(engine)

    migrate(engine, "0001")

    assert old_rows(engine) == before
    assert set(inspect(engine).get_table_names()) == {"adapters", "alembic_version"}
    assert [index["name"] for index in inspect(engine).get_indexes("adapters")] == ["ix_adapters_digest"]
    registry = AdapterRegistry(database_url)  # and forward again
    assert registry.count() == len(rows)
    registry.close()


def test_going_back_keeps_what_stable_names(engine: Engine, database_url: str) -> None:
    registry = AdapterRegistry(database_url)
    for text_name in ("shop", "t/faq"):
        name = AdapterName.parse(text_name)
        registry.register(name, version(A))
        registry.register(name, version(B), on_existing=OnExisting.PROMOTE, alias="canary", labels={"a": "b"})
    registry.deprecate(AdapterName("default", "shop"), B)
    registry.close()

    command = [sys.executable, "-m", "loraplex_adapters.migrations", database_url, "0001"]
    subprocess.run(command, check=True)

    kept = [(row["name"], row["digest"], row["state"]) for row in old_rows(engine)]
    assert kept == [("shop", B, "ready"), ("t/faq", B, "ready")]


def test_going_back_before_training_jobs_keeps_the_adapters(engine: Engine, database_url: str) -> None:
    registry = AdapterRegistry(database_url)
    name = AdapterName.parse("t/faq")
    before = registry.register(name, version(A), alias="candidate")

    migrate(engine, "0002")

    assert "training_jobs" not in inspect(engine).get_table_names()
    assert registry.get(name) == before
    migrate(engine)
    assert "training_jobs" in inspect(engine).get_table_names()
    assert registry.get(name) == before
    registry.close()


def test_the_tables_after_all_migrations_are_those_of_the_code(engine: Engine) -> None:
    migrate(engine)

    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "0003"


def test_names_sort_by_code_point_whatever_the_language_of_postgresql(postgres: PostgresServer) -> None:
    engine = open_engine(postgres.new_database())
    migrate(engine)

    with engine.connect() as connection:
        query = "SELECT table_name, column_name FROM information_schema.columns WHERE collation_name = 'C'"
        sorted_columns = {tuple(row) for row in connection.execute(text(query))}

    assert sorted_columns >= {("adapters", "tenant"), ("adapters", "adapter"), ("versions", "digest")}
    engine.dispose()


def test_a_database_of_a_newer_release_is_refused_and_left_alone(engine: Engine, database_url: str) -> None:
    migrate(engine)
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(StorageError, match="newer release"):
        AdapterRegistry(database_url)

    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"


def test_a_migration_that_fails_changes_nothing(engine: Engine, database_url: str) -> None:
    fill(engine, [old_row("a"), old_row("b")])
    before = old_rows(engine)
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE versions (taken INTEGER)"))

    with pytest.raises(StorageError):
        AdapterRegistry(database_url)

    assert old_rows(engine) == before
    assert set(inspect(engine).get_table_names()) == {"adapters", "versions"}


def test_servers_that_start_at_once_on_an_old_database_all_find_its_adapters(
    engine: Engine, database_url: str
) -> None:
    fill(engine, [old_row(f"a{i}") for i in range(1200)])

    with multiprocessing.get_context("spawn").Pool(4) as pool:
        counts = pool.map(open_and_count, [database_url] * 4, chunksize=1)

    assert counts == [1200] * 4


def test_servers_that_start_at_once_on_no_database_make_one(database_url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        counts = pool.map(open_and_count, [database_url] * 4, chunksize=1)

    assert counts == [0] * 4
