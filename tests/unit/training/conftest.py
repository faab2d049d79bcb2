"""Stores of training jobs on real databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loraplex_adapters.migrations import migrate
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry_database import open_engine
from loraplex_server.training.job_store import JobStore
from loraplex_server.training.jobs import JobName, TrainingJob
from tests.support.postgres import PostgresServer, postgres
from tests.unit.adapters.release_case import Clock

__all__ = ["postgres"]  # a fixture

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def new_job(number: int = 1, tenant: str = "team", **fields: Any) -> TrainingJob:
    """A job that is not stored."""
    defaults: dict[str, Any] = {
        "name": JobName(tenant, f"{number:016x}"),
        "adapter": AdapterName(tenant, "faq"),
        "alias": "candidate",
        "owner": "a" * 32,
        "recipe": "name: faq",
        "data_folder": "",
        "device": "cpu",
        "created_at": MOMENT,
        "updated_at": MOMENT,
    }
    return TrainingJob(**{**defaults, **fields})


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database with empty tables, of each kind in turn."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'registry.db'}"
        migrated(url)
        yield url
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.database() as url:
        migrated(url)
        yield url


def migrated(url: str) -> None:
    """Make the tables."""
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()


@pytest.fixture
def clock() -> Clock:
    """The store's clock."""
    return Clock()


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[JobStore]:
    """An empty store on each kind of database, with three unfinished jobs for a tenant."""
    store = JobStore(database_url, 3, clock=clock)
    yield store
    store.close()
