from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex_trainer.judge.statistics import (
    Change,
    Verdict,
    mcnemar,
    paired_change,
    share,
    verdict_of_drop,
    verdict_of_gain,
    worst,
)

scores = st.lists(st.floats(0, 1), max_size=200)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=150)


def right(count: int, of: int) -> list[float]:
    return [1.0] * count + [0.0] * (of - count)


@given(scores)
def test_a_share_lies_within_its_interval_and_that_within_0_and_1(values: list[float]) -> None:
    found = share(values, 0.95)

    assert 0 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 1
    assert found.n == len(values)


def test_wilsons_interval_is_the_one_of_the_tables() -> None:
    found = share(right(8, 10), 0.95)

    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_more_questions_make_an_interval_narrower() -> None:
    few, many = share(right(9, 10), 0.95), share(right(900, 1000), 0.95)

    assert many.high - many.low < (few.high - few.low) / 5


@settings(max_examples=30, deadline=None)
@given(pairs)
def test_swapping_base_and_adapter_turns_the_change_around(found: list[tuple[bool, bool]]) -> None:
    base, adapter = [float(one) for one, _ in found], [float(other) for _, other in found]
    there, back = paired_change(base, adapter, 0.95), paired_change(adapter, base, 0.95)

    assert there.points == pytest.approx(-back.points)
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert there.p_value == back.p_value
    assert there.low <= there.high


def test_the_interval_of_a_change_is_close_to_the_exact_one() -> None:
    """Of 200 pairs 30 are gained and 10 lost: Agresti and Min give 9.9 ± 6.1 points."""
    change = paired_change([1.0] * 10 + [0.0] * 30 + [1.0] * 160, [0.0] * 10 + [1.0] * 30 + [1.0] * 160, 0.95)

    assert change.points == pytest.approx(10.0)
    assert change.low == pytest.approx(3.8, abs=0.6)
    assert change.high == pytest.approx(16.0, abs=0.6)


def test_few_questions_without_a_difference_are_no_certainty() -> None:
    few, many = (
        paired_change(right(5, 5), right(5, 5), 0.95),
        paired_change(right(500, 500), right(500, 500), 0.95),
    )

    assert few.points == many.points == 0
    assert few.low < -15
    assert many.low > -1


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"), [(0, 0, 1.0), (5, 5, 1.0), (10, 2, 0.0386), (0, 6, 0.03125)]
)
def test_mcnemars_exact_test_is_that_of_the_tables(gained: int, lost: int, p_value: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p_value, abs=1e-4)


@pytest.mark.parametrize(
    ("base", "adapter", "verdict"),
    [
        (right(10, 100), right(90, 100), "pass"),
        (right(50, 100), right(40, 100), "fail"),
        (right(2, 10), right(4, 10), "inconclusive"),
    ],
)
def test_a_gain_is_sure_surely_missing_or_open(
    base: list[float], adapter: list[float], verdict: Verdict
) -> None:
    assert verdict_of_gain(paired_change(base, adapter, 0.95), 0.0) == verdict


@pytest.mark.parametrize(
    ("adapter", "verdict"),
    [
        (right(800, 1000), "pass"),
        (right(798, 1000), "pass"),
        (right(700, 1000), "fail"),
        (right(785, 1000), "inconclusive"),
    ],
)
def test_a_drop_is_surely_small_surely_large_or_open(adapter: list[float], verdict: Verdict) -> None:
    assert verdict_of_drop(paired_change(right(800, 1000), adapter, 0.95), 2.0) == verdict


def test_no_questions_prove_nothing() -> None:
    change = paired_change([], [], 0.95)

    assert verdict_of_gain(change, 0.0) == verdict_of_drop(change, 2.0) == "inconclusive"
    assert share([], 0.95).n == 0


def test_answers_to_different_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired_change([1.0], [1.0, 0.0], 0.95)


def test_one_failure_fails_all_and_one_doubt_leaves_all_in_doubt() -> None:
    assert worst(["pass", "inconclusive", "fail"]) == "fail"
    assert worst(["pass", "inconclusive"]) == "inconclusive"
    assert worst(["pass", "pass"]) == "pass"


def test_the_same_answers_give_the_same_interval() -> None:
    first: Change = paired_change(right(30, 100), right(60, 100), 0.95)

    assert first == paired_change(right(30, 100), right(60, 100), 0.95)
