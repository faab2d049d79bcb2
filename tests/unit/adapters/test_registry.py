from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loraplex_adapters.errors import AdapterExistsError, AdapterNotFoundError, InvalidRequestError
from loraplex_adapters.registry import AdapterRegistry, AdapterState, RegisteredAdapter

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"


@pytest.fixture
def registry(url: str) -> Iterator[AdapterRegistry]:
    registry = AdapterRegistry(url, clock=lambda: NOW)
    yield registry
    registry.close()


def register(
    registry: AdapterRegistry, name: str, digest: str = "a" * 64, **fields: Any
) -> RegisteredAdapter:
    defaults: dict[str, Any] = {
        "size_bytes": 4096,
        "rank": 8,
        "target_modules": ("v_proj", "q_proj"),
        "served_module_count": 60,
        "base_fingerprint": "f" * 64,
    }
    return registry.register(name, digest=digest, **{**defaults, **fields})


def test_a_registered_adapter_survives_a_restart(registry: AdapterRegistry, url: str) -> None:
    written = register(registry, "tenants/shop-1/faq_v1.2", size_bytes=2**40)
    registry.close()

    reopened = AdapterRegistry(url)

    assert reopened.get("tenants/shop-1/faq_v1.2") == written
    assert written == RegisteredAdapter(
        name="tenants/shop-1/faq_v1.2",
        digest="a" * 64,
        state=AdapterState.READY,
        size_bytes=2**40,
        rank=8,
        target_modules=("q_proj", "v_proj"),
        served_module_count=60,
        base_fingerprint="f" * 64,
        created_at=NOW,
    )
    reopened.close()


def test_registering_the_same_weights_again_returns_the_row(registry: AdapterRegistry) -> None:
    first = register(registry, "shop")

    assert register(registry, "shop") == first
    assert registry.count() == 1


def test_a_name_taken_by_other_weights_is_refused(registry: AdapterRegistry) -> None:
    first = register(registry, "shop")

    with pytest.raises(AdapterExistsError, match="'shop' is registered with other weights"):
        register(registry, "shop", digest="b" * 64)

    assert registry.get("shop") == first


def test_registering_a_failed_adapter_again_makes_it_ready(registry: AdapterRegistry) -> None:
    register(registry, "shop")
    assert registry.mark_failed("shop").state == AdapterState.FAILED
    assert registry.get("shop").state == AdapterState.FAILED

    assert register(registry, "shop", base_fingerprint="e" * 64).state == AdapterState.READY

    assert registry.get("shop").base_fingerprint == "e" * 64


def test_a_deleted_adapter_is_gone(registry: AdapterRegistry) -> None:
    written = register(registry, "shop")

    assert registry.delete("shop") == written

    for call in (registry.get, registry.delete, registry.mark_failed):
        with pytest.raises(AdapterNotFoundError, match="'shop'"):
            call("shop")
    assert registry.count() == 0


def test_pages_are_in_order_of_name_and_complete(registry: AdapterRegistry) -> None:
    names = [f"shop-{i}" for i in range(25)]
    for name in reversed(names):
        register(registry, name)

    found: list[str] = []
    while page := registry.list_page(10, after_name=found[-1] if found else ""):
        assert len(page) <= 10
        found += [adapter.name for adapter in page]

    assert found == sorted(names)


def test_deleting_between_two_pages_skips_no_adapter(registry: AdapterRegistry) -> None:
    for name in "abcdef":
        register(registry, name)
    first = registry.list_page(3)
    registry.delete("b")
    registry.delete("c")

    rest = registry.list_page(3, after_name=first[-1].name)

    assert [adapter.name for adapter in rest] == ["d", "e", "f"]


def test_of_many_callers_with_one_name_one_digest_wins(registry: AdapterRegistry) -> None:
    def attempt(i: int) -> str | None:
        try:
            return register(registry, "shop", digest=f"{i % 4:064x}").digest
        except AdapterExistsError:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = {digest for digest in pool.map(attempt, range(32)) if digest}

    assert won == {registry.get("shop").digest}


def test_a_second_process_may_use_the_same_file(registry: AdapterRegistry, url: str) -> None:
    other = AdapterRegistry(url)
    register(registry, "shop")

    assert other.get("shop").name == "shop"
    other.close()


def test_sqlite_runs_with_a_durable_write_ahead_log(registry: AdapterRegistry, tmp_path: Path) -> None:
    register(registry, "shop")

    with sqlite3.connect(tmp_path / "registry.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with registry._engine.connect() as own:
        assert own.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_a_registry_in_memory_keeps_its_rows(tmp_path: Path) -> None:
    registry = AdapterRegistry("sqlite://")

    register(registry, "shop")

    assert registry.count() == 1


def test_a_bad_name_is_never_registered(registry: AdapterRegistry) -> None:
    with pytest.raises(InvalidRequestError):
        register(registry, "../shop")

    assert registry.count() == 0
