"""The search finds a capacity that is known, and sees when a server falls behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_loadtest.fake.law import LatencyLaw, LawState
from loraplex_loadtest.saturation.detector import OverSaturation, grows
from loraplex_loadtest.saturation.saturate import at_rate
from loraplex_loadtest.saturation.search import Saturation, SearchSettings, Trial, search
from tests.unit.loadtest.builders import scenario


def trial(rate: float, is_good: bool, is_valid: bool = True) -> Trial:
    return Trial(
        rate=rate,
        goodput_share=float(is_good),
        requests_per_s=rate,
        tokens_per_s=rate,
        ttft_p50_s=None,
        ttft_p90_s=None,
        e2e_p50_s=None,
        was_stopped=not is_good,
        is_valid=is_valid,
        is_good=is_good,
    )


def found(settings: SearchSettings, capacity: float, generator_limit: float = np.inf) -> Saturation:
    steps = search(settings)
    rate = next(steps)
    while True:
        try:
            rate = steps.send(trial(rate, rate <= min(capacity, generator_limit), rate <= generator_limit))
        except StopIteration as done:
            answer: Saturation = done.value
            return answer


@given(st.floats(0.05, 5000), st.sampled_from([0.01, 0.05, 0.2]), st.floats(1.2, 4))
def test_the_answer_is_within_the_tolerance_below_the_capacity(
    capacity: float, tolerance: float, growth: float
) -> None:
    answer = found(SearchSettings(tolerance=tolerance, growth=growth), capacity)

    assert answer.sustained_rate <= capacity <= answer.sustained_rate * (1 + tolerance) * (1 + 1e-9)
    assert answer.failed_rate is not None
    assert answer.failed_rate > capacity


def test_a_server_that_never_fails_ends_the_search_at_its_largest_rate() -> None:
    answer = found(SearchSettings(max_rate=100), 1e9)

    assert (answer.sustained_rate, answer.failed_rate) == (100, None)


def test_a_server_that_always_fails_ends_it_too() -> None:
    answer = found(SearchSettings(), 0.0)

    assert answer.sustained_rate == 0
    assert len(answer.trials) < 20


def test_a_generator_that_gives_out_first_is_told() -> None:
    assert found(SearchSettings(), 1000, generator_limit=50).generator_limited
    assert not found(SearchSettings(), 50, generator_limit=1000).generator_limited


def test_a_rate_fails_only_if_every_attempt_does() -> None:
    steps = search(SearchSettings(attempts=2, max_rate=2))

    assert next(steps) == 1
    assert steps.send(trial(1, False)) == 1
    assert steps.send(trial(1, True)) == 2


def watched(
    seconds: float, arrivals_per_s: float, capacity_per_s: float, noise: float = 0.05
) -> OverSaturation:
    """A server whose queue is arrivals less capacity, seen four times a second."""
    rng = np.random.default_rng(0)
    detector = OverSaturation()
    for at_s in np.arange(0.25, seconds, 0.25):
        queue = max(0.0, arrivals_per_s - capacity_per_s) * at_s
        steady = arrivals_per_s * min(at_s, 1.0)
        ttft_s = 0.2 + queue / capacity_per_s
        factors = 1 + noise * rng.normal(size=2)
        detector.add(float(at_s), (steady + queue) * factors[0], ttft_s * factors[1])
    return detector


def test_a_server_that_falls_behind_is_found() -> None:
    assert watched(10, arrivals_per_s=40, capacity_per_s=20).is_certain


@pytest.mark.parametrize("seconds", [1, 3, 10, 30])
def test_a_server_that_keeps_up_is_left_alone(seconds: float) -> None:
    assert not watched(seconds, arrivals_per_s=20, capacity_per_s=20).is_certain


SERVICE = LatencyLaw(first_token_s=0.14, per_token_s=0.08)  # of 12 to 35 tokens: two seconds a request


def stopped_share(max_running: int, rate: float, seconds: float, bearable_ttft_s: float) -> float:
    """Of 40 trials of Poisson arrivals on a server of so many places: how many were stopped."""
    return (
        sum(
            is_stopped(
                LawState(replace(SERVICE, max_running=max_running)), rate, seconds, bearable_ttft_s, seed
            )
            for seed in range(40)
        )
        / 40
    )


def is_stopped(state: LawState, rate: float, seconds: float, bearable_ttft_s: float, seed: int) -> bool:
    rng = np.random.default_rng(seed)
    detector = OverSaturation(bearable_ttft_s)
    arrivals = rng.exponential(1 / rate, int(2 * rate * seconds)).cumsum()
    served = [
        (at_s, made) for at_s in arrivals if (made := state.admit(at_s, "", 1, int(rng.integers(12, 36))))
    ]
    for at_s in np.arange(0.25, seconds, 0.25):
        in_flight = sum(sent_s <= at_s < made.end_s for sent_s, made in served)
        first = [made.first_s - sent_s for sent_s, made in served if at_s - 0.25 < made.first_s <= at_s]
        detector.add(float(at_s), in_flight, float(np.mean(first)) if first else np.nan)
        if detector.is_certain:
            return True
    return False


@pytest.mark.parametrize(("max_running", "rate"), [(64, 2.0), (5, 2.0), (64, 8.0), (20, 8.0)])
def test_bursts_of_a_server_that_keeps_up_are_not_taken_for_a_growing_queue(
    max_running: int, rate: float
) -> None:
    assert stopped_share(max_running, rate, 25, bearable_ttft_s=1.0) <= 0.05


@pytest.mark.parametrize(("max_running", "rate"), [(3, 2.0), (8, 8.0)])
def test_a_server_of_too_few_places_is_found_out(max_running: int, rate: float) -> None:
    assert stopped_share(max_running, rate, 60, bearable_ttft_s=1.0) >= 0.8


def test_few_samples_and_flat_lines_prove_nothing() -> None:
    assert not grows([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    assert not grows(list(range(20)), [1.0] * 20)
    assert grows(list(range(20)), [float(n) for n in range(20)])


def test_a_trial_keeps_the_process_and_changes_the_rate() -> None:
    bursty = scenario({"arrivals": {"kind": "gamma", "rate": 1, "cv": 3}, "adapters": {"names": ["red"]}})
    ramp = scenario(
        {"arrivals": {"kind": "ramp", "from_rate": 1, "to_rate": 2}, "adapters": {"names": ["red"]}}
    )

    assert at_rate(bursty, 7, 5).traffic[0].arrivals.model_dump() == {
        "kind": "gamma",
        "rate": 7,
        "cv": 3,
        "duration_s": 5,
    }
    assert at_rate(ramp, 7, 5).traffic[0].arrivals.kind == "poisson"


def test_the_law_queues_in_order_behind_its_places() -> None:
    state = LawState(LatencyLaw(first_token_s=1, per_token_s=0.5, max_running=1))

    first, second = (state.admit(at_s, "", 1, 3) for at_s in (10.0, 10.5))

    assert first is not None
    assert second is not None
    assert (first.start_s, first.first_s, first.end_s) == (10.0, 11.0, 12.0)
    assert (second.start_s, second.first_s) == (12.0, 13.0)


def test_the_law_loads_an_adapter_once_while_it_has_a_slot() -> None:
    state = LawState(LatencyLaw(adapter_load_s=2, adapter_slots=1))

    loads = [made.load_s for name in ("a", "a", "b", "a", "") if (made := state.admit(0.0, name, 1, 1))]

    assert loads == [2, 0, 2, 2, 0]


def test_the_law_refuses_what_may_not_wait_and_stalls_when_it_is_due() -> None:
    full = LawState(LatencyLaw(first_token_s=5, max_running=1, max_waiting=1))
    stalling = LawState(LatencyLaw(first_token_s=1, stall_at_s=2, stall_s=3))

    answers = [full.admit(at_s, "", 1, 1) is not None for at_s in (0.0, 0.1, 0.2)]
    starts = [made.start_s for at_s in (0.0, 2.5, 5.0) if (made := stalling.admit(at_s, "", 1, 1))]

    assert answers == [True, True, False]
    assert starts == [0.0, 5.0, 5.0]


def test_a_server_that_gives_out_below_a_bad_trial_of_the_generator_is_the_limit() -> None:
    steps = search(SearchSettings(start_rate=1, tolerance=0.5))
    next(steps)
    steps.send(trial(1, True))
    steps.send(trial(2, False, is_valid=False))
    with pytest.raises(StopIteration) as done:
        steps.send(trial(1.41, False, is_valid=True))

    answer: Saturation = done.value.value
    assert answer.failed_rate == pytest.approx(2**0.5)
    assert not answer.generator_limited


def test_a_ramp_that_begins_above_its_end_is_refused() -> None:
    with pytest.raises(ValueError, match="above its end"):
        SearchSettings(start_rate=5, max_rate=2)
