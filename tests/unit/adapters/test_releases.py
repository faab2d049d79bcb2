"""Which version of an adapter answers."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_adapters.errors import AdapterNotFoundError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.releases import Adapter, Shadow, TrafficShare, Version

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD, NEW, TWIN = "a" * 64, "b" * 64, "b" * 12 + "c" * 52


def version(digest: str) -> Version:
    return Version(
        digest=digest,
        size_bytes=1,
        num_elements=1,
        rank=1,
        target_modules=("q_proj",),
        served_module_count=1,
        base_fingerprint="f" * 64,
        created_at=NOW,
    )


def adapter(
    *digests: str, traffic: tuple[TrafficShare, ...] = (), shadow: Shadow | None = None, name: str = "faq"
) -> Adapter:
    return Adapter(
        name=AdapterName("default", name),
        versions=tuple(map(version, digests)),
        aliases={"stable": digests[-1], "canary": digests[0]},
        traffic=traffic,
        shadow=shadow,
        revision=1,
        created_at=NOW,
        updated_at=NOW,
    )


def test_without_a_split_the_bare_name_is_stable() -> None:
    both = adapter(NEW, OLD)

    assert both.stable.digest == OLD
    assert {both.choose(str(key)).digest for key in range(100)} == {OLD}
    assert [v.digest for v in both.served_by_name()] == [OLD]


def test_a_version_is_found_by_alias_digest_or_the_digests_beginning() -> None:
    both = adapter(NEW, OLD)

    for target in ("canary", NEW, NEW[:12], NEW[:40], NEW[:12].upper(), f"sha256:{NEW}"):
        assert both.version(target).digest == NEW
    for target in ("", "beta", NEW[:11], "c" * 64):
        with pytest.raises(AdapterNotFoundError, match="no version or alias"):
            both.version(target)


def test_a_beginning_of_two_digests_names_neither() -> None:
    with pytest.raises(AdapterNotFoundError, match="several versions"):
        adapter(NEW, TWIN, OLD).version(NEW[:12])


@given(st.integers(1, 100), st.integers(1, 100))
def test_a_split_gives_each_version_its_part_of_the_keys(old: int, new: int) -> None:
    split = adapter(NEW, OLD, traffic=(TrafficShare("stable", old), TrafficShare("canary", new)))
    counts = Counter(split.choose(f"customer-{key}").digest for key in range(2000))

    assert abs(counts[NEW] / 2000 - new / (old + new)) < 0.06


@given(st.text(max_size=40))
def test_a_key_keeps_its_version(key: str) -> None:
    traffic = (TrafficShare("stable", 50), TrafficShare(NEW[:12], 50))

    assert adapter(NEW, OLD, traffic=traffic).choose(key) == adapter(NEW, OLD, traffic=traffic).choose(key)


def test_a_grown_share_only_takes_keys_over() -> None:
    """A customer who has the new version keeps it while the share of the new one grows."""
    keys = [str(key) for key in range(500)]
    small = adapter(NEW, OLD, traffic=(TrafficShare("canary", 10), TrafficShare("stable", 90)))
    large = adapter(NEW, OLD, traffic=(TrafficShare("canary", 50), TrafficShare("stable", 50)))

    had = {key for key in keys if small.choose(key).digest == NEW}
    have = {key for key in keys if large.choose(key).digest == NEW}
    assert had
    assert had < have


def test_two_adapters_split_the_same_keys_independently() -> None:
    traffic = (TrafficShare("stable", 1), TrafficShare("canary", 1))
    first, second = (adapter(NEW, OLD, traffic=traffic, name=name) for name in ("faq", "shop"))

    agree = sum(first.choose(str(key)).digest == second.choose(str(key)).digest for key in range(1000))
    assert 400 < agree < 600


def test_a_shadow_answers_its_part_of_the_requests() -> None:
    shadowed = adapter(NEW, OLD, shadow=Shadow("canary", 25))
    shadows = [shadowed.shadow_of(str(key)) for key in range(2000)]

    assert {v.digest for v in shadows if v is not None} == {NEW}
    assert abs(sum(v is not None for v in shadows) / 2000 - 0.25) < 0.05
    assert adapter(NEW, OLD).shadow_of("any") is None
    assert adapter(NEW, OLD, shadow=Shadow("canary", 100)).shadow_of("any") is not None


def test_the_versions_behind_a_split_name_are_told_once_each() -> None:
    traffic = (TrafficShare("stable", 1), TrafficShare("canary", 1), TrafficShare(OLD[:12], 1))

    assert [v.digest for v in adapter(NEW, OLD, traffic=traffic).served_by_name()] == [OLD, NEW]
