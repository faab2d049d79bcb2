"""Adapters that cannot be loaded."""

from __future__ import annotations

import pytest

from loraplex_adapters.errors import AdapterInvalidError, AdapterTooLargeError, AdapterUnavailableError
from loraplex_server.errors import SequenceFailedError
from tests.unit.engine.residency_case import Build, Packages, acquire, make_arena, settle, touch


def test_an_adapter_larger_than_the_arena_is_refused_and_evicts_nobody(
    build: Build, packages: Packages
) -> None:
    residency = build(2, make_arena(2))
    packages.rank_of["large"] = 3
    touch(residency, "a")

    with pytest.raises(AdapterTooLargeError, match="96 bytes, more than the whole adapter arena"):
        acquire(residency, "large")

    assert residency.active_digests == ["a"]
    assert residency.num_loading == 0


@pytest.mark.parametrize("failure", [AdapterInvalidError("cut off"), OSError("no disk")])
def test_a_package_that_cannot_be_read_is_tried_again_by_the_next_request(
    build: Build, packages: Packages, failure: Exception
) -> None:
    residency = build()
    packages.failures["a"] = failure
    with pytest.raises(AdapterUnavailableError, match="stored package cannot be"):
        acquire(residency, "a")
    del packages.failures["a"]

    assert acquire(residency, "a") is not None


class Panic(BaseException):
    """As Rust's panics come to Python: no Exception."""


@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("no pinned memory"), KeyError("a bug"), Panic("in native code")]
)
def test_a_load_that_failed_for_no_fault_of_the_package_fails_for_who_waits_and_is_tried_again(
    build: Build, packages: Packages, failure: BaseException
) -> None:
    residency = build()
    packages.failures["a"] = failure
    packages.may_read.clear()
    residency.warm("a")
    residency.prefetch("a")
    packages.may_read.set()

    with pytest.raises(SequenceFailedError, match="could not load the adapter"):
        acquire(residency, "a")

    assert [told.reason for told in residency.take_events().failures] == ["SEQUENCE_FAILED"]
    assert residency.num_slots_used == residency.num_loading == residency.host_bytes_used == 0
    del packages.failures["a"]
    assert acquire(residency, "a") is not None


def test_a_pinned_or_warmed_adapter_that_cannot_be_read_is_told_once(
    build: Build, packages: Packages
) -> None:
    residency = build()
    packages.failures["a"] = packages.failures["b"] = AdapterInvalidError("cut off")
    residency.pin(["a"])
    residency.warm("b")

    settle(residency)

    failures = residency.take_events().failures
    assert [failure.digest for failure in failures] == ["a", "b"]
    assert all("cut off" in failure.message for failure in failures)
    assert residency.num_loading == 0
    assert not residency.has_news
