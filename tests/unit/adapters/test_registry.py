"""Registering, reading, listing and deleting adapters."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import event

from loraplex_adapters.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    InvalidRequestError,
    QuotaExceededError,
    StorageError,
    TooManyVersionsError,
    VersionDeprecatedError,
)
from loraplex_adapters.filters import AdapterFilter
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry, Quota
from loraplex_adapters.releases import (
    MAX_VERSIONS,
    Adapter,
    EventKind,
    OnExisting,
    Shadow,
    TrafficShare,
    VersionState,
)
from tests.unit.adapters.release_case import NOW, SHOP, A, B, C, Clock, version

ADD, PROMOTE = OnExisting.ADD_VERSION, OnExisting.PROMOTE


def test_the_first_version_of_a_name_is_stable_and_survives_a_restart(
    registry: AdapterRegistry, database_url: str
) -> None:
    proved = version(size_bytes=2**40, source="https://host/path", signer="ci@example.org", rank=64)
    written = registry.register(SHOP, proved, alias="canary", labels={"team": "reds", "Größe": ""})
    registry.close()

    reopened = AdapterRegistry(database_url)

    assert reopened.get(SHOP) == written
    assert written == Adapter(
        name=SHOP,
        versions=(proved,),
        aliases={"stable": A, "canary": A},
        labels={"team": "reds", "Größe": ""},
        revision=1,
        created_at=NOW,
        updated_at=NOW,
    )
    reopened.close()


def test_everything_of_an_adapter_is_read_as_it_was_written(registry: AdapterRegistry, clock: Clock) -> None:
    registry.register(SHOP, version(A))
    clock.pass_time(seconds=1)
    registry.register(SHOP, version(B), on_existing=ADD, alias="canary")
    registry.split(SHOP, [TrafficShare("stable", 9000), TrafficShare("canary", 1000)])
    registry.set_shadow(SHOP, Shadow(B[:12], 10))
    registry.deprecate(SHOP, B)
    written = registry.set_pinned(SHOP, True, max_pinned=2)

    assert registry.get(SHOP) == written
    assert [one.digest for one in written.versions] == [B, A]
    assert written.traffic == (TrafficShare("stable", 9000), TrafficShare("canary", 1000))
    assert written.shadow == Shadow(B, 10)
    assert written.is_pinned
    assert written.version(B).state is VersionState.DEPRECATED
    assert (written.created_at, written.updated_at) == (NOW, clock.now)


def test_registering_the_same_weights_again_changes_nothing(registry: AdapterRegistry) -> None:
    first = registry.register(SHOP, version(), labels={"team": "reds"})

    assert registry.register(SHOP, version(source="folder"), labels={"team": "blues"}) == first
    assert registry.revision() == 1


@pytest.mark.parametrize("on_existing", list(OnExisting))
def test_registering_a_failed_version_again_makes_it_ready(
    registry: AdapterRegistry, on_existing: OnExisting
) -> None:
    registry.register(SHOP, version())
    assert registry.mark_failed(SHOP, A).stable.state is VersionState.FAILED
    assert registry.get(SHOP).stable.state is VersionState.FAILED

    again = registry.register(SHOP, version(), on_existing=on_existing)

    assert again.stable.state is VersionState.READY
    assert registry.events(2, 10)[0].kind is EventKind.REGISTERED


def test_registering_on_a_new_base_renews_what_was_proved_against(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version())

    registry.register(SHOP, version(base_fingerprint="d" * 64, template_hash="", num_elements=2000))

    renewed = registry.get(SHOP).stable
    assert (renewed.base_fingerprint, renewed.template_hash, renewed.num_elements) == ("d" * 64, "", 2000)


def test_a_deprecated_version_registered_again_stays_deprecated(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(A))
    registry.register(SHOP, version(B), on_existing=ADD)
    registry.deprecate(SHOP, B)

    assert registry.register(SHOP, version(B)).version(B).state is VersionState.DEPRECATED

    for options in ({"on_existing": PROMOTE}, {"alias": "canary"}):
        with pytest.raises(VersionDeprecatedError):
            registry.register(SHOP, version(B), **options)


def test_a_name_taken_by_other_weights_is_refused(registry: AdapterRegistry) -> None:
    first = registry.register(SHOP, version(A))

    with pytest.raises(AdapterExistsError, match="'shop' is registered with other weights"):
        registry.register(SHOP, version(B))

    assert registry.get(SHOP) == first


def test_an_added_version_is_named_by_its_digest_alone(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(A))

    adapter = registry.register(SHOP, version(B), on_existing=ADD)

    assert adapter.aliases == {"stable": A}
    assert adapter.version(B[:12]).digest == B
    event = registry.events(1, 10)[0]
    assert (event.kind, event.digest, event.aliases) == (EventKind.REGISTERED, B, ())


def test_a_version_may_be_added_and_promoted_at_once(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(A))
    registry.split(SHOP, [TrafficShare("stable", 1)])

    adapter = registry.register(SHOP, version(B), on_existing=PROMOTE, alias="canary")

    assert adapter.aliases == {"stable": B, "canary": B}
    assert adapter.traffic == ()
    assert registry.revision() == 3  # one event for all of it
    assert registry.rollback(SHOP).stable.digest == A


def test_a_known_version_registered_with_an_alias_moves_it(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(A))
    registry.register(SHOP, version(B), on_existing=ADD)

    assert registry.register(SHOP, version(B), alias="canary").aliases == {"stable": A, "canary": B}
    assert registry.register(SHOP, version(B), on_existing=PROMOTE).aliases == {"stable": B, "canary": B}

    told = [(event.kind, event.aliases) for event in registry.events(2, 10)]
    assert told == [(EventKind.PROMOTED, ("canary",)), (EventKind.PROMOTED, ("stable",))]


def test_an_adapter_has_so_many_versions_and_no_more(registry: AdapterRegistry) -> None:
    for i in range(MAX_VERSIONS):
        registry.register(SHOP, version(f"{i:064x}"), on_existing=ADD)

    with pytest.raises(TooManyVersionsError):
        registry.register(SHOP, version(A), on_existing=ADD)

    registry.delete_version(SHOP, f"{1:064x}")
    registry.register(SHOP, version(f"{1:064x}"), on_existing=ADD)
    digests = [one.digest for one in registry.get(SHOP).versions]
    assert digests == [f"{i:064x}" for i in (1, *reversed(range(2, MAX_VERSIONS)), 0)]  # newest first


@pytest.mark.parametrize("alias", ["Canary", "1st", "a" * 12, "a" * 33, "a b", "ä", "a\n"])
def test_an_alias_that_breaks_the_rules_registers_nothing(registry: AdapterRegistry, alias: str) -> None:
    with pytest.raises(InvalidRequestError, match="alias"):
        registry.register(SHOP, version(), alias=alias)

    assert registry.count() == 0


@pytest.mark.parametrize(
    "labels",
    [{"": "x"}, {"k" * 64: "x"}, {"k": "v" * 256}, {"k\0": ""}, {f"k{i}": "" for i in range(33)}],
)
def test_labels_over_their_limits_are_refused(registry: AdapterRegistry, labels: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="labels"):
        registry.register(SHOP, version(), labels=labels)
    registry.register(SHOP, version(), labels={"k" * 63: "v" * 255, **{f"k{i}": "" for i in range(31)}})
    with pytest.raises(InvalidRequestError, match="labels"):
        registry.update_labels(SHOP, labels)


def test_updating_labels_replaces_all_of_them(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(), labels={"a": "1", "b": "2"})

    registry.update_labels(SHOP, {"b": "3", "c": "4"})

    assert registry.get(SHOP).labels == {"b": "3", "c": "4"}


def test_a_deleted_adapter_is_gone_with_its_versions(registry: AdapterRegistry) -> None:
    written = registry.register(SHOP, version(), alias="canary", labels={"a": "b"})

    assert registry.delete(SHOP) == written

    for call in (registry.get, registry.delete, registry.rollback):
        with pytest.raises(AdapterNotFoundError, match="'shop'"):
            call(SHOP)
    assert registry.count() == 0
    assert registry.referenced([A]) == set()
    assert registry.register(SHOP, version(B)).aliases == {"stable": B}


def test_pages_are_in_order_of_name_and_complete(registry: AdapterRegistry) -> None:
    names = [
        AdapterName(t, f"{a}{i}")
        for t in ("default", "a-b", "a", "a_b")
        for a in ("x-", "x.", "x_")
        for i in "0z"
    ]
    for name in reversed(names):
        registry.register(name, version())

    found: list[AdapterName] = []
    while page := registry.list_page(5, after=found[-1] if found else None):
        assert len(page) <= 5
        found += [adapter.name for adapter in page]

    assert found == sorted(names)  # by code point, whatever the database's language
    assert registry.count() == len(names)
    assert [a.name for a in registry.list_page(100, tenant="a-b")] == sorted(
        n for n in names if n.tenant == "a-b"
    )


def test_deleting_between_two_pages_skips_no_adapter(registry: AdapterRegistry) -> None:
    for name in "abcdef":
        registry.register(AdapterName("t", name), version())
    first = registry.list_page(3)
    registry.delete(AdapterName("t", "b"))
    registry.delete(AdapterName("t", "c"))

    rest = registry.list_page(3, after=first[-1].name)

    assert [adapter.name.adapter for adapter in rest] == ["d", "e", "f"]


def test_digests_are_referenced_by_whichever_version_has_them(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(A))
    registry.register(SHOP, version(B), on_existing=ADD)
    registry.register(AdapterName("other", "shop"), version(B))
    registry.delete_version(SHOP, B)
    strangers = {f"{i:064x}" for i in range(1200)}  # more than go into one statement

    assert registry.referenced({A, B, C, *strangers}) == {A, B}
    assert registry.referenced(iter([C])) == set()


def test_a_tenant_has_so_many_adapters_as_its_quota(database_url: str) -> None:
    registry = AdapterRegistry(database_url, Quota(max_adapters=2))
    for name in ("a", "b"):
        registry.register(AdapterName("t", name), version(A))

    with pytest.raises(QuotaExceededError) as caught:
        registry.register(AdapterName("t", "c"), version(A))

    assert caught.value.subject == "tenants/t"
    assert "2 adapters" in caught.value.description
    registry.register(AdapterName("t", "a"), version(B), on_existing=ADD)
    registry.register(AdapterName("u", "c"), version(A))
    registry.close()


def test_a_tenant_pays_once_for_the_bytes_of_a_digest(database_url: str) -> None:
    registry = AdapterRegistry(database_url, Quota(max_bytes=100))
    for name in ("a", "b"):
        registry.register(AdapterName("t", name), version(A, size_bytes=60))
    registry.register(AdapterName("t", "a"), version(B, size_bytes=40), on_existing=ADD)

    for name in ("a", "new"):
        with pytest.raises(QuotaExceededError, match="limit of 100"):
            registry.register(AdapterName("t", name), version(C, size_bytes=1), on_existing=ADD)

    registry.register(AdapterName("u", "a"), version(C, size_bytes=100))
    registry.delete_version(AdapterName("t", "a"), B)
    registry.register(AdapterName("t", "a"), version(C, size_bytes=40), on_existing=ADD)
    registry.close()


def test_of_many_callers_with_one_name_one_digest_wins(registry: AdapterRegistry) -> None:
    def attempt(i: int) -> str | None:
        try:
            return registry.register(SHOP, version(f"{i % 4:064x}")).stable.digest
        except AdapterExistsError:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = {digest for digest in pool.map(attempt, range(32)) if digest}

    assert won == {registry.get(SHOP).stable.digest}


def test_sqlite_runs_with_a_durable_write_ahead_log(tmp_path: Path) -> None:
    registry = AdapterRegistry(f"sqlite:///{tmp_path / 'registry.db'}")
    registry.register(SHOP, version())

    with sqlite3.connect(tmp_path / "registry.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with registry._engine.connect() as own:
        assert own.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    registry.close()


def test_a_registry_in_memory_keeps_its_rows_for_all_threads() -> None:
    registry = AdapterRegistry("sqlite://")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: registry.register(AdapterName("t", f"a{i}"), version()), range(40)))

    assert registry.count() == registry.revision() == 40
    registry.close()


@pytest.mark.parametrize("url", ["mysql://host/db", "postgresql+psycopg2://host/db", "nonsense"])
def test_a_url_of_another_database_is_refused(url: str) -> None:
    with pytest.raises(StorageError):
        AdapterRegistry(url)


def test_a_page_takes_four_statements_however_long_it_is(tmp_path: Path) -> None:
    registry = AdapterRegistry(f"sqlite:///{tmp_path / 'registry.db'}")
    for i in range(60):
        registry.register(AdapterName("t", f"a{i:03}"), version(f"{i:064x}"), labels={"parity": str(i % 2)})
    statements: list[str] = []
    event.listen(registry._engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    page = registry.list_page(50, where=AdapterFilter.parse("labels.parity = 1"))

    assert [adapter.name.adapter for adapter in page] == [f"a{i:03}" for i in range(1, 60, 2)]
    assert len([one for one in statements if one.startswith("SELECT")]) == 4
    registry.close()
