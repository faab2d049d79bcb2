"""What moves in an adapter after its registration: aliases, splits, shadows, pins, marks and versions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loraplex_adapters.errors import (
    AdapterNotFoundError,
    AdapterUnavailableError,
    AliasInUseError,
    EtagMismatchError,
    InvalidRequestError,
    NothingToRollBackError,
    TooManyPinnedError,
    VersionDeprecatedError,
    VersionInUseError,
)
from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.release_changes import MAX_ALIASES, MAX_HISTORY
from loraplex_adapters.releases import Adapter, EventKind, OnExisting, Shadow, TrafficShare, VersionState
from tests.unit.adapters.release_case import SHOP, A, B, C, version

D = "d" * 64


@pytest.fixture
def shop(registry: AdapterRegistry) -> Adapter:
    """An adapter with versions A (stable), B and C."""
    registry.register(SHOP, version(A))
    registry.register(SHOP, version(B), on_existing=OnExisting.ADD_VERSION)
    return registry.register(SHOP, version(C), on_existing=OnExisting.ADD_VERSION)


def last_event(registry: AdapterRegistry) -> tuple[EventKind, str, str]:
    """(kind, digest, aliases) of the newest event."""
    event = registry.events(registry.revision() - 1, 10)[0]
    return event.kind, event.digest, " ".join(event.aliases)


@pytest.mark.usefixtures("shop")
def test_promoting_moves_or_makes_an_alias(registry: AdapterRegistry) -> None:
    assert registry.promote(SHOP, B[:12]).stable.digest == B
    assert last_event(registry) == (EventKind.PROMOTED, B, "stable")
    assert registry.promote(SHOP, C, alias="canary").aliases == {"stable": B, "canary": C}
    assert registry.promote(SHOP, "canary").aliases == {"stable": C, "canary": C}
    assert registry.get(SHOP).aliases == {"stable": C, "canary": C}


@pytest.mark.usefixtures("shop")
def test_moving_stable_ends_a_split_and_moving_another_alias_does_not(registry: AdapterRegistry) -> None:
    registry.promote(SHOP, B, alias="canary")
    shares = [TrafficShare("stable", 9), TrafficShare("canary", 1)]
    registry.split(SHOP, shares)

    assert registry.promote(SHOP, C, alias="canary").traffic == tuple(shares)
    assert registry.rollback(SHOP, alias="canary").traffic == tuple(shares)
    assert registry.promote(SHOP, A).traffic == ()  # where it was already
    registry.promote(SHOP, B)
    registry.split(SHOP, shares)
    assert registry.rollback(SHOP).traffic == ()


@pytest.mark.usefixtures("shop")
def test_a_deprecated_version_is_served_where_it_is_named_but_not_promoted(registry: AdapterRegistry) -> None:
    registry.promote(SHOP, B)
    registry.split(SHOP, [TrafficShare(A, 1)])
    assert registry.deprecate(SHOP, A[:12]).version(A).state is VersionState.DEPRECATED
    assert last_event(registry) == (EventKind.DEPRECATED, A, "")
    for alias in ("stable", "canary"):
        with pytest.raises(VersionDeprecatedError):
            registry.promote(SHOP, A, alias=alias)

    assert registry.get(SHOP).served_by_name() == (registry.get(SHOP).version(A),)
    assert registry.rollback(SHOP).stable.digest == A
    assert registry.deprecate(SHOP, A, undo=True).stable.state is VersionState.READY
    assert registry.promote(SHOP, A, alias="canary").aliases["canary"] == A


@pytest.mark.usefixtures("shop")
def test_a_deprecated_version_is_given_no_traffic_and_no_shadow_that_it_has_not(
    registry: AdapterRegistry,
) -> None:
    registry.promote(SHOP, B, alias="canary")
    registry.deprecate(SHOP, B)

    for target in (B, B[:12], "canary"):
        with pytest.raises(VersionDeprecatedError, match="take the mark back first"):
            registry.split(SHOP, [TrafficShare("stable", 9), TrafficShare(target, 1)])
        with pytest.raises(VersionDeprecatedError):
            registry.set_shadow(SHOP, Shadow(target, 1))
    assert registry.get(SHOP).served_by_name() == (registry.get(SHOP).stable,)


@pytest.mark.usefixtures("shop")
def test_traffic_is_led_away_from_a_deprecated_version_by_degrees(registry: AdapterRegistry) -> None:
    registry.set_shadow(SHOP, Shadow(B, 50))
    for digest in (A, B):  # A is "stable"
        registry.deprecate(SHOP, digest)

    for old, new in ((90, 10), (10, 90)):
        registry.split(SHOP, [TrafficShare("stable", old), TrafficShare(C, new)])
    registry.split(SHOP, [TrafficShare(C, 1)])
    registry.split(SHOP, [TrafficShare(A, 1), TrafficShare(C, 1)])  # while it is what the split falls back to
    registry.set_shadow(SHOP, Shadow(B, 10))
    registry.promote(SHOP, C)

    with pytest.raises(VersionDeprecatedError):
        registry.split(SHOP, [TrafficShare(A, 1), TrafficShare(C, 1)])
    registry.set_shadow(SHOP, None)
    with pytest.raises(VersionDeprecatedError):
        registry.set_shadow(SHOP, Shadow(B, 10))


@pytest.mark.usefixtures("shop")
def test_nothing_new_names_a_failed_version(registry: AdapterRegistry) -> None:
    registry.promote(SHOP, B)
    registry.mark_failed(SHOP, A)
    assert last_event(registry) == (EventKind.FAILED, A, "")

    refused: list[Callable[[], object]] = [
        lambda: registry.promote(SHOP, A),
        lambda: registry.rollback(SHOP),
        lambda: registry.split(SHOP, [TrafficShare(A, 1)]),
        lambda: registry.set_shadow(SHOP, Shadow(A, 1)),
        lambda: registry.deprecate(SHOP, A),
    ]
    for call in refused:
        with pytest.raises(AdapterUnavailableError, match="register it again"):
            call()
    registry.register(SHOP, version(A))
    assert registry.rollback(SHOP).stable.digest == A


@pytest.mark.usefixtures("shop")
def test_rolling_back_goes_one_step_further_each_time(registry: AdapterRegistry) -> None:
    registry.promote(SHOP, B)
    registry.promote(SHOP, B)
    registry.promote(SHOP, C)
    registry.promote(SHOP, A)

    for digest in (C, B, A):
        assert registry.rollback(SHOP).stable.digest == digest
        assert last_event(registry) == (EventKind.ROLLED_BACK, digest, "stable")
    with pytest.raises(NothingToRollBackError):
        registry.rollback(SHOP)


@pytest.mark.usefixtures("shop")
def test_every_alias_has_a_history_of_its_own(registry: AdapterRegistry) -> None:
    registry.promote(SHOP, B, alias="canary")
    registry.promote(SHOP, C, alias="canary")
    registry.promote(SHOP, B)

    assert registry.rollback(SHOP, alias="canary").aliases == {"stable": B, "canary": B}
    with pytest.raises(NothingToRollBackError):
        registry.rollback(SHOP, alias="canary")
    with pytest.raises(AdapterNotFoundError, match="no alias 'other'"):
        registry.rollback(SHOP, alias="other")
    registry.delete_alias(SHOP, "canary")
    registry.promote(SHOP, A, alias="canary")
    with pytest.raises(NothingToRollBackError):
        registry.rollback(SHOP, alias="canary")


@pytest.mark.usefixtures("shop")
def test_a_deleted_version_leaves_the_history_and_no_step_that_does_nothing(
    registry: AdapterRegistry,
) -> None:
    for digest in (B, C, A, C, A):
        registry.promote(SHOP, digest)

    registry.delete_version(SHOP, C)

    assert registry.rollback(SHOP).stable.digest == B
    assert registry.rollback(SHOP).stable.digest == A
    with pytest.raises(NothingToRollBackError):
        registry.rollback(SHOP)


@pytest.mark.usefixtures("shop")
def test_the_history_is_bounded(registry: AdapterRegistry) -> None:
    for i in range(MAX_HISTORY + 3):
        registry.promote(SHOP, (B, C)[i % 2])

    for _ in range(MAX_HISTORY):
        registry.rollback(SHOP)
    with pytest.raises(NothingToRollBackError):
        registry.rollback(SHOP)


@pytest.mark.usefixtures("shop")
def test_a_digest_that_is_no_version_or_too_short_is_not_found(registry: AdapterRegistry) -> None:
    for target in (D, "a" * 11, "canary", ""):
        with pytest.raises(AdapterNotFoundError):
            registry.promote(SHOP, target)
    registry.register(SHOP, version("a" * 20 + "0" * 44), on_existing=OnExisting.ADD_VERSION)
    with pytest.raises(AdapterNotFoundError, match="several versions"):
        registry.promote(SHOP, "a" * 12)
    with pytest.raises(AdapterNotFoundError):
        registry.mark_failed(SHOP, D)


@pytest.mark.usefixtures("shop")
def test_marks_and_removals_take_digests_alone(registry: AdapterRegistry) -> None:
    with pytest.raises(InvalidRequestError, match="version"):
        registry.deprecate(SHOP, "stable")
    with pytest.raises(InvalidRequestError, match="version"):
        registry.delete_version(SHOP, "stable")


@pytest.mark.usefixtures("shop")
def test_aliases_are_bounded(registry: AdapterRegistry) -> None:
    for i in range(MAX_ALIASES - 1):
        registry.promote(SHOP, A, alias=f"a{i}")
    with pytest.raises(InvalidRequestError, match="alias"):
        registry.promote(SHOP, A, alias="one-more")
    registry.promote(SHOP, B, alias="a0")


@pytest.mark.usefixtures("shop")
def test_an_alias_goes_unless_it_is_stable_or_routed_to(registry: AdapterRegistry) -> None:
    registry.promote(SHOP, B, alias="canary")
    registry.promote(SHOP, B, alias="next")
    registry.split(SHOP, [TrafficShare("stable", 1), TrafficShare("canary", 1)])
    registry.set_shadow(SHOP, Shadow("next", 5))
    for alias in ("stable", "canary", "next"):
        with pytest.raises(AliasInUseError):
            registry.delete_alias(SHOP, alias)

    registry.split(SHOP, [])
    registry.set_shadow(SHOP, None)

    registry.delete_alias(SHOP, "canary")
    assert last_event(registry) == (EventKind.UPDATED, B, "canary")
    assert registry.delete_alias(SHOP, "next").aliases == {"stable": A}
    with pytest.raises(AdapterNotFoundError):
        registry.delete_alias(SHOP, "next")


@pytest.mark.usefixtures("shop")
def test_a_version_goes_unless_something_names_it(registry: AdapterRegistry) -> None:
    registry.split(SHOP, [TrafficShare("stable", 1), TrafficShare(B[:12], 1)])
    registry.set_shadow(SHOP, Shadow(C[:12], 1))
    for digest in (A, B, C):
        with pytest.raises(VersionInUseError):
            registry.delete_version(SHOP, digest)

    registry.split(SHOP, [])
    assert [v.digest for v in registry.delete_version(SHOP, B[:12]).versions] == [C, A]
    assert last_event(registry) == (EventKind.VERSION_DELETED, B, "")
    registry.set_shadow(SHOP, None)
    assert [v.digest for v in registry.delete_version(SHOP, C).versions] == [A]
    with pytest.raises(VersionInUseError, match="alias 'stable'"):
        registry.delete_version(SHOP, A)


@pytest.mark.usefixtures("shop")
def test_a_split_names_whole_digests_that_later_versions_cannot_blur(registry: AdapterRegistry) -> None:
    registry.split(SHOP, [TrafficShare(B[:12], 1), TrafficShare("stable", 2)])

    adapter = registry.register(SHOP, version("b" * 20 + "0" * 44), on_existing=OnExisting.ADD_VERSION)

    assert {v.digest for v in adapter.served_by_name()} == {A, B}


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    "shares",
    [
        [TrafficShare("stable", 0)],
        [TrafficShare("stable", 10_001)],
        [TrafficShare("stable", 1), TrafficShare("stable", 2)],
        [TrafficShare(B, 1), TrafficShare(B[:12], 2)],
        [TrafficShare(f"a{i}", 1) for i in range(9)],
    ],
)
def test_a_split_that_breaks_the_rules_is_refused(
    registry: AdapterRegistry, shares: list[TrafficShare]
) -> None:
    for i in range(9):
        registry.promote(SHOP, A, alias=f"a{i}")
    with pytest.raises(InvalidRequestError, match="traffic"):
        registry.split(SHOP, shares)
    assert registry.get(SHOP).traffic == ()


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("percent", [0, 101])
def test_a_shadow_has_a_percentage(registry: AdapterRegistry, percent: int) -> None:
    with pytest.raises(InvalidRequestError, match="percent"):
        registry.set_shadow(SHOP, Shadow(B, percent))


@pytest.mark.usefixtures("shop")
def test_what_changes_nothing_makes_no_event(registry: AdapterRegistry) -> None:
    registry.split(SHOP, [TrafficShare(B, 1)])
    registry.set_shadow(SHOP, Shadow(B, 1))
    registry.deprecate(SHOP, B)
    registry.mark_failed(SHOP, C)
    adapter = registry.set_pinned(SHOP, True, max_pinned=1)

    assert registry.split(SHOP, [TrafficShare(B[:12], 1)]) == adapter
    assert registry.set_shadow(SHOP, Shadow(B, 1)) == adapter
    assert registry.deprecate(SHOP, B) == adapter
    assert registry.deprecate(SHOP, A, undo=True) == adapter
    assert registry.mark_failed(SHOP, C) == adapter
    assert registry.update_labels(SHOP, {}) == adapter
    assert registry.set_pinned(SHOP, True, max_pinned=0) == adapter
    assert registry.get(SHOP) == adapter
    assert registry.revision() == adapter.revision


def test_pins_are_counted_in_versions_that_pinned_names_serve(
    registry: AdapterRegistry, shop: Adapter
) -> None:
    faq = AdapterName("t", "faq")
    registry.register(faq, version(A))
    registry.register(AdapterName("t", "last"), version(D))
    registry.set_pinned(SHOP, True, max_pinned=2)
    registry.set_pinned(faq, True, max_pinned=2)  # the same weights take one slot
    with pytest.raises(TooManyPinnedError, match="2 adapter slots, and at most 1"):
        registry.set_pinned(AdapterName("t", "last"), True, max_pinned=1)
    registry.set_pinned(SHOP, False, max_pinned=2)
    registry.split(SHOP, [TrafficShare(A, 1), TrafficShare(B, 1), TrafficShare(C, 1)])
    with pytest.raises(TooManyPinnedError):
        registry.set_pinned(SHOP, True, max_pinned=2)

    pinned = registry.set_pinned(SHOP, True, max_pinned=3)

    assert registry.pinned() == [pinned, registry.get(faq)]


@pytest.mark.usefixtures("shop")
def test_a_write_with_an_etag_wants_the_adapter_as_it_was_read(registry: AdapterRegistry) -> None:
    read = registry.get(SHOP)
    registry.register(AdapterName("t", "another"), version(A))  # changes the registry, not this adapter
    etag = str(read.revision)
    after = registry.update_labels(SHOP, {"a": "b"}, etag=etag)
    calls: list[Callable[[], object]] = [
        lambda: registry.update_labels(SHOP, {}, etag=etag),
        lambda: registry.promote(SHOP, B, etag=etag),
        lambda: registry.rollback(SHOP, etag=etag),
        lambda: registry.delete_alias(SHOP, "stable", etag=etag),
        lambda: registry.split(SHOP, [], etag=etag),
        lambda: registry.set_shadow(SHOP, None, etag=etag),
        lambda: registry.set_pinned(SHOP, True, max_pinned=9, etag=etag),
        lambda: registry.deprecate(SHOP, B, etag=etag),
        lambda: registry.delete_version(SHOP, B, etag=etag),
        lambda: registry.delete(SHOP, etag=etag),
        lambda: registry.promote(SHOP, B, etag="nonsense"),
    ]

    for call in calls:
        with pytest.raises(EtagMismatchError, match="read it again"):
            call()

    assert registry.get(SHOP) == after
    assert registry.delete(SHOP, etag=str(after.revision)) == after


def test_every_write_refuses_a_name_that_is_not_there(registry: AdapterRegistry) -> None:
    calls: list[Callable[[], object]] = [
        lambda: registry.update_labels(SHOP, {}),
        lambda: registry.promote(SHOP, B),
        lambda: registry.rollback(SHOP),
        lambda: registry.delete_alias(SHOP, "canary"),
        lambda: registry.split(SHOP, []),
        lambda: registry.set_shadow(SHOP, None),
        lambda: registry.set_pinned(SHOP, True, max_pinned=9),
        lambda: registry.deprecate(SHOP, B),
        lambda: registry.mark_failed(SHOP, B),
        lambda: registry.delete_version(SHOP, B),
        lambda: registry.delete(SHOP),
    ]
    for call in calls:
        with pytest.raises(AdapterNotFoundError, match="'shop'"):
            call()
    assert registry.revision() == 0
