"""A database that fails is a StorageError, soon, and the registry goes on when it is back."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from loraplex_adapters import registry_database
from loraplex_adapters.errors import StorageError
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.registry_database import open_engine, reading, writing
from tests.integration.live_server import eventually
from tests.support.postgres import PostgresServer
from tests.unit.adapters.release_case import SHOP, A, version


def test_a_lost_postgresql_fails_every_call_and_serves_again_when_it_is_back(
    postgres: PostgresServer,
) -> None:
    registry = AdapterRegistry(postgres.new_database())
    written = registry.register(SHOP, version())
    calls: list[Callable[[], object]] = [
        lambda: registry.get(SHOP),
        lambda: registry.list_page(10),
        lambda: registry.count(),
        lambda: registry.revision(),
        lambda: registry.events(0, 10),
        lambda: registry.referenced([A]),
        lambda: registry.register(SHOP, version()),
        lambda: registry.delete(SHOP),
    ]
    postgres.stop()
    try:
        for call in calls:
            with pytest.raises(StorageError, match="try again later") as caught:
                call()
            assert "/" not in str(caught.value)
    finally:
        postgres.start()

    assert registry.get(SHOP) == written
    assert registry.update_labels(SHOP, {"a": "b"}).revision == 2
    registry.close()


@pytest.mark.parametrize("options", ["", "?sslmode=disable", "?sslmode=require", "?sslmode=verify-full"])
def test_a_postgresql_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    monkeypatch.setattr(registry_database, "_SOCKET_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(StorageError, match="try again later"):
        AdapterRegistry(f"postgresql://someone:secret@127.0.0.1:{deaf.getsockname()[1]}/registry{options}")


@pytest.mark.parametrize(
    "options", ["sslmode=yes", "sslmode=verify-full&sslrootcert=/none", "unknown=1", "sslmode=a&sslmode=b"]
)
def test_a_postgresql_url_with_options_that_make_no_sense_is_refused(options: str) -> None:
    with pytest.raises(StorageError) as caught:
        AdapterRegistry(f"postgresql://someone:secret@127.0.0.1:1/registry?{options}")
    assert "secret" not in str(caught.value)


def test_a_connection_that_falls_silent_is_given_up(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_database, "_SOCKET_TIMEOUT_S", 2)
    registry = AdapterRegistry(postgres.new_database())
    postgres.suspend()
    try:
        with pytest.raises(StorageError):
            registry.revision()
    finally:
        postgres.resume()

    eventually(lambda: answers(registry), 60)
    registry.close()


def answers(registry: AdapterRegistry) -> bool:
    try:
        return registry.revision() == 0
    except StorageError:
        return False


@pytest.mark.parametrize("options", ["", "?sslmode=disable"])
def test_those_who_queue_behind_a_call_that_waited_in_vain_do_not_wait_as_long_again(
    monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    monkeypatch.setattr(registry_database, "_SOCKET_TIMEOUT_S", 0.2)
    monkeypatch.setattr(registry_database, "_SILENCE_S", 3600)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        engine = open_engine(f"postgresql://someone@127.0.0.1:{deaf.getsockname()[1]}/registry{options}")
        with pytest.raises(StorageError, match="cannot be used"), reading(engine):
            pass

    with pytest.raises(StorageError, match="does not answer"), writing(engine):
        pass


def test_a_connection_that_is_refused_is_asked_for_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_database, "_SILENCE_S", 3600)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        engine = open_engine(f"postgresql://someone@127.0.0.1:{gone.getsockname()[1]}/registry")
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot be used"), reading(engine):
            pass


def test_a_plain_postgresql_url_takes_the_driver_that_is_installed(postgres: PostgresServer) -> None:
    url = postgres.new_database().replace("postgresql+pg8000://", "postgresql://")

    registry = AdapterRegistry(url)

    assert registry.revision() == 0
    registry.close()


def test_a_writer_that_waits_too_long_for_another_is_told(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = AdapterRegistry(postgres.new_database())
    registry.register(SHOP, version())
    monkeypatch.setattr(registry_database, "_STATEMENT_TIMEOUT_MS", 1000)
    registry._engine.dispose()  # new connections take the new limit

    with registry._journal():
        with pytest.raises(StorageError):
            registry.update_labels(SHOP, {"a": "b"})
        assert registry.get(SHOP).labels == {}  # readers pass

    assert registry.update_labels(SHOP, {"a": "b"}).labels == {"a": "b"}
    registry.close()


def test_a_sqlite_writer_that_waits_too_long_for_another_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_database, "_BUSY_TIMEOUT_MS", 50)
    registry = AdapterRegistry(f"sqlite:///{tmp_path / 'registry.db'}")
    registry.register(SHOP, version())

    with registry._journal():
        with pytest.raises(StorageError):
            registry.update_labels(SHOP, {"a": "b"})
        assert registry.get(SHOP).labels == {}  # readers pass

    assert registry.update_labels(SHOP, {"a": "b"}).labels == {"a": "b"}
    registry.close()


def test_a_file_that_is_no_database_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"no database at all" * 100)

    with pytest.raises(StorageError):
        AdapterRegistry(f"sqlite:///{tmp_path / 'registry.db'}")
    with pytest.raises(StorageError):
        AdapterRegistry(f"sqlite:///{tmp_path / 'missing' / 'registry.db'}")


def test_a_write_that_fails_half_way_is_undone(tmp_path: Path) -> None:
    registry = AdapterRegistry(f"sqlite:///{tmp_path / 'registry.db'}")
    before = registry.register(SHOP, version())
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE INSERT ON labels BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )

    with pytest.raises(StorageError):
        registry.update_labels(SHOP, {"a": "b"})

    assert registry.get(SHOP) == before
    assert registry.revision() == 1
    registry.close()
