from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_server.engine.memory_plan import InsufficientMemoryError, check_holds_context, plan_memory

GIB = 2**30
PARTS: dict[str, Any] = {
    "free": 80 * GIB,
    "share": 0.9,
    "base": 6 * GIB,
    "arena": 2 * GIB,
    "workspace": GIB,
    "num_graphs": 100,
    "kv_cache": None,
    "least_kv_cache": GIB,
}


def test_the_cache_takes_what_the_rest_leaves() -> None:
    plan = plan_memory(**PARTS)

    assert plan.total == int(80 * GIB * 0.9)
    assert plan.kv_cache > 60 * GIB


def test_a_cache_that_was_asked_for_is_kept() -> None:
    assert plan_memory(**{**PARTS, "kv_cache": 3 * GIB}).kv_cache == 3 * GIB


@pytest.mark.parametrize(
    "change",
    [
        {"base": 90 * GIB},
        {"arena": 70 * GIB},
        {"kv_cache": 75 * GIB},
        {"kv_cache": GIB // 2},
        {"free": 8 * GIB},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_the_numbers(change: dict[str, int]) -> None:
    with pytest.raises(InsufficientMemoryError, match=r"base [\d,]+ MiB.*MiB free.*lower kv_cache_bytes"):
        plan_memory(**{**PARTS, **change})


@given(
    free=st.integers(GIB, 200 * GIB),
    share=st.floats(0.1, 1.0),
    base=st.integers(0, 100 * GIB),
    kv_cache=st.none() | st.integers(0, 100 * GIB),
)
def test_a_plan_never_passes_its_share_of_the_device(
    free: int, share: float, base: int, kv_cache: int | None
) -> None:
    change = {"free": free, "share": share, "base": base, "kv_cache": kv_cache}
    try:
        plan = plan_memory(**{**PARTS, **change})
    except InsufficientMemoryError:
        return
    assert plan.total <= free * share
    assert plan.kv_cache >= PARTS["least_kv_cache"]


def test_a_cache_that_one_whole_context_just_fits_is_large_enough() -> None:
    check_holds_context(4 * 1000, 1000, block_size=32, max_context_tokens=128)
    check_holds_context(4 * 1000, 1000, block_size=32, max_context_tokens=97)


def test_a_cache_that_one_context_outgrows_is_refused_with_what_it_holds_and_what_is_needed() -> None:
    with pytest.raises(
        InsufficientMemoryError,
        match=r"3,999 bytes holds 96 tokens.*max_context_tokens=97 takes 4,000.*Raise kv_cache_bytes to 4000, or lower",
    ):
        check_holds_context(3_999, 1000, block_size=32, max_context_tokens=97)
