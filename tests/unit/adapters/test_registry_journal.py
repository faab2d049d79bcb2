"""Revisions, events, and request ids that make a write happen once."""

from __future__ import annotations

import pytest

from loraplex_adapters.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    EventsExpiredError,
    RequestIdReusedError,
)
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry, Once
from loraplex_adapters.releases import AdapterEvent, EventKind, OnExisting, Shadow, TrafficShare
from tests.unit.adapters.release_case import NOW, SHOP, A, B, Clock, version


def test_every_change_moves_the_revision_by_one_and_tells_one_event(
    registry: AdapterRegistry, clock: Clock
) -> None:
    assert registry.revision() == 0
    assert registry.events(0, 10) == []
    registry.register(SHOP, version(A), alias="canary")
    clock.pass_time(microseconds=1)
    promoting = registry.register(SHOP, version(B), on_existing=OnExisting.PROMOTE, alias="canary")
    assert promoting.revision == 2
    registry.rollback(SHOP)
    registry.delete(SHOP)

    assert registry.revision() == 4
    assert registry.events(0, 10) == [
        AdapterEvent(1, EventKind.REGISTERED, SHOP, A, ("stable", "canary"), NOW),
        AdapterEvent(2, EventKind.REGISTERED, SHOP, B, ("stable", "canary"), clock.now),
        AdapterEvent(3, EventKind.ROLLED_BACK, SHOP, A, ("stable",), clock.now),
        AdapterEvent(4, EventKind.DELETED, SHOP, "", (), clock.now),
    ]
    assert [event.revision for event in registry.events(1, 2)] == [2, 3]
    assert registry.events(4, 10) == []


def test_a_refused_write_leaves_no_trace(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(A))
    once = Once("id", "content")

    with pytest.raises(AdapterExistsError):
        registry.register(SHOP, version(B), once=once)

    assert registry.revision() == 1
    assert registry.register(SHOP, version(B), on_existing=OnExisting.PROMOTE, once=once).stable.digest == B


def test_events_may_be_those_of_a_tenant_or_a_name(registry: AdapterRegistry) -> None:
    names = [AdapterName("t", "a"), AdapterName("t", "b"), AdapterName("u", "a")]
    for name in names * 2:
        registry.register(name, version(A), alias=f"a{registry.revision()}")

    assert [event.revision for event in registry.events(0, 10, tenant="t")] == [1, 2, 4, 5]
    assert [event.revision for event in registry.events(1, 1, name=names[2])] == [3]


def test_a_repeated_request_gets_the_first_answer_and_changes_nothing(registry: AdapterRegistry) -> None:
    once = Once("id-1", "content")
    first = registry.register(
        SHOP, version(A, source="https://host/ä"), alias="canary", labels={"a": "b"}, once=once
    )
    registry.register(SHOP, version(B), on_existing=OnExisting.PROMOTE)
    registry.split(SHOP, [TrafficShare(A, 3)])
    second = registry.set_shadow(SHOP, Shadow(B, 9), once=Once("id-2", "content"))
    registry.delete(SHOP)

    assert registry.register(SHOP, version(A), once=once) == first
    assert registry.set_shadow(SHOP, Shadow(B, 9), once=Once("id-2", "content")) == second
    with pytest.raises(AdapterNotFoundError):
        registry.get(SHOP)
    assert registry.revision() == 5


def test_a_repeated_request_is_answered_although_its_etag_is_outdated(registry: AdapterRegistry) -> None:
    etag = str(registry.register(SHOP, version(A)).revision)
    once = Once("id", "content")
    first = registry.update_labels(SHOP, {"a": "b"}, etag=etag, once=once)

    assert registry.update_labels(SHOP, {"a": "b"}, etag=etag, once=once) == first


def test_what_changed_nothing_is_remembered_too(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(A))
    once = Once("id", "content")
    first = registry.promote(SHOP, A, once=once)
    registry.register(SHOP, version(B), on_existing=OnExisting.PROMOTE)

    assert registry.promote(SHOP, A, once=once) == first
    assert registry.get(SHOP).stable.digest == B


def test_a_repeated_deletion_deletes_no_successor(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(A))
    once = Once("id", "content")
    assert registry.delete(SHOP, once=once) is not None
    registry.register(SHOP, version(B))

    assert registry.delete(SHOP, once=once) is None
    assert registry.get(SHOP).stable.digest == B


def test_an_id_with_other_content_is_refused(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(A), once=Once("id", "content"))

    with pytest.raises(RequestIdReusedError, match="request_id"):
        registry.update_labels(SHOP, {"a": "b"}, once=Once("id", "other"))

    assert registry.get(SHOP).labels == {}


def test_tenants_choose_their_ids_without_regard_to_one_another(registry: AdapterRegistry) -> None:
    bank = AdapterName("bank", "faq")
    registry.register(SHOP, version(A), once=Once("deploy-1", "the shop's"))

    registry.register(bank, version(B), once=Once("deploy-1", "the bank's"))

    assert registry.get(bank).stable.digest == B
    with pytest.raises(RequestIdReusedError):
        registry.promote(bank, B, once=Once("deploy-1", "the shop's"))


def test_an_id_is_forgotten_after_a_day(registry: AdapterRegistry, clock: Clock) -> None:
    registry.register(SHOP, version(A), once=Once("id", "content"))
    clock.pass_time(hours=23, minutes=59)
    with pytest.raises(RequestIdReusedError):
        registry.update_labels(SHOP, {"a": "b"}, once=Once("id", "other"))
    clock.pass_time(minutes=1)

    assert registry.update_labels(SHOP, {"a": "b"}, once=Once("id", "other")).labels == {"a": "b"}
    assert registry.update_labels(SHOP, {"a": "b"}, once=Once("id", "other")).labels == {"a": "b"}


def test_events_of_more_than_a_week_ago_are_gone_and_a_watcher_is_told(
    registry: AdapterRegistry, clock: Clock
) -> None:
    registry.register(SHOP, version(A), once=Once("id", "content"))
    registry.promote(SHOP, A, alias="a")
    clock.pass_time(days=3)
    registry.promote(SHOP, A, alias="b")
    clock.pass_time(days=5)
    registry.promote(SHOP, A, alias="c")

    assert [event.revision for event in registry.events(0, 10)] == [3, 4]
    assert [event.revision for event in registry.events(2, 10)] == [3, 4]
    with pytest.raises(EventsExpiredError, match="watch from now"):
        registry.events(1, 10)
    with registry._engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM request_ids").scalar() == 0


def test_old_rows_are_not_looked_for_at_every_write(registry: AdapterRegistry, clock: Clock) -> None:
    registry.register(SHOP, version(A))
    clock.pass_time(days=7, minutes=-1)
    registry.promote(SHOP, A, alias="a")
    clock.pass_time(minutes=2)
    registry.promote(SHOP, A, alias="b")
    assert [event.revision for event in registry.events(0, 10)] == [1, 2, 3]
    clock.pass_time(minutes=10)

    registry.promote(SHOP, A, alias="c")

    assert [event.revision for event in registry.events(0, 10)] == [2, 3, 4]


def test_a_revision_that_never_was_is_told_apart_from_one_without_news(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version(A))

    with pytest.raises(EventsExpiredError, match=r"not of this registry; list .* watch from now"):
        registry.events(2, 10)
