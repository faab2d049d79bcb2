"""Figures against records that were computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_loadtest.figures.fairness import fairness, jain_index
from loraplex_loadtest.figures.groups import distributions, rates
from loraplex_loadtest.figures.health import generator_health
from loraplex_loadtest.figures.percentiles import Distribution, has_enough, nearest_rank
from loraplex_loadtest.figures.samples import Samples
from loraplex_loadtest.figures.timeline import heat_map, timeline
from loraplex_loadtest.records import CANCELLED_BY_PLAN, GeneratorLoad, Recording
from loraplex_loadtest.scenario import Objectives
from tests.unit.loadtest.builders import record, recording

# Request 0: 4 tokens in 3 messages. Request 1: sent half a second late. Request 2: refused. Request 3: one token.
MESSAGES = {0: [(1.5, 1), (1.7, 2), (1.8, 1)], 1: [(3.0, 1), (4.0, 1)], 3: [(5.25, 1)]}


def made() -> Recording:
    return recording(
        MESSAGES,
        record(0, 1.0),
        record(1, 2.0, sent_s=2.5, tenant="other", adapter="blue", is_cold=True, adapter_load_s=0.25),
        record(2, 4.0, status="RESOURCE_EXHAUSTED"),
        record(3, 5.0, adapter=""),
    )


def samples(window_s: tuple[float, float] = (0.0, 10.0)) -> Samples:
    return Samples.of(made(), window_s)


EVERYTHING = np.ones(4, dtype=np.bool_)


def test_first_tokens_are_charged_from_the_intended_send() -> None:
    found = samples()

    assert found.ttft_s.tolist()[:2] == [0.5, 1.0]
    assert found.service_ttft_s.tolist()[:2] == [0.5, 0.5]
    assert math.isnan(found.ttft_s[2])
    assert found.client_queue_s.tolist() == [0.0, 0.5, 0.0, 0.0]


def test_time_per_token_leaves_out_the_first_and_needs_two() -> None:
    found = samples()

    assert found.tpot_s[0] == pytest.approx(0.1)
    assert found.tpot_s[1] == pytest.approx(1.0)
    assert math.isnan(found.tpot_s[3])


def test_end_to_end_is_of_requests_that_ended_well() -> None:
    found = samples()

    assert found.e2e_s[[0, 1, 3]] == pytest.approx([0.8, 2.0, 0.25])
    assert math.isnan(found.e2e_s[2])
    assert found.ntpot_s[[0, 1]] == pytest.approx([0.2, 1.0])


def test_a_gap_is_spread_over_the_tokens_that_ended_it() -> None:
    assert sorted(samples().inter_token_s(EVERYTHING)) == pytest.approx([0.1, 0.1, 0.1, 1.0])


def test_rates_count_refusals_as_misses() -> None:
    found = rates(samples(), EVERYTHING, Objectives(ttft_s=0.6))

    assert found["requests"] == 4
    assert found["ok"] == 3
    assert found["statuses"] == {"OK": 3, "RESOURCE_EXHAUSTED": 1}
    assert found["error_rate"] == 0.25
    assert found["goodput_share"] == 0.5
    assert found["goodput_per_s"] == 0.2
    assert found["tokens"] == 7
    assert found["tokens_per_s"] == 0.7


@pytest.mark.parametrize(
    ("objectives", "share"),
    [
        (Objectives(), 0.75),
        (Objectives(tpot_s=0.5), 0.5),
        (Objectives(e2e_s=0.5), 0.25),
        (Objectives(ttft_s=0.3, e2e_s=0.5), 0.25),
        (Objectives(ttft_s=0.1), 0.0),
    ],
    ids=["none", "tpot", "e2e", "two", "impossible"],
)
def test_good_requests_meet_every_objective(objectives: Objectives, share: float) -> None:
    assert rates(samples(), EVERYTHING, objectives)["goodput_share"] == share


def test_a_request_that_gave_up_as_planned_is_neither_good_nor_an_error() -> None:
    told = recording(
        {0: [(1.5, 1)]}, record(0, 1.0, status=CANCELLED_BY_PLAN), record(1, 2.0, status="INTERNAL")
    )

    found = rates(Samples.of(told, (0, 10)), np.ones(2, dtype=np.bool_), Objectives())

    assert (found["error_rate"], found["goodput_share"]) == (1.0, 0.0)
    assert found["statuses"] == {"CANCELLED_BY_PLAN": 1, "INTERNAL": 1}


def test_only_the_window_is_measured_and_tokens_by_their_own_moment() -> None:
    found = rates(samples((1.5, 4.0)), EVERYTHING, Objectives())

    assert found["requests"] == 1  # the one meant for 2.0
    assert found["tokens_per_s"] == pytest.approx(5 / 2.5)  # at 1.5, 1.7, 1.8 and 3.0


def test_cold_and_warm_are_told_apart() -> None:
    found = distributions(samples(), EVERYTHING)

    assert (found["cold_ttft"].count, found["cold_ttft"].mean) == (1, 1.0)
    assert found["warm_ttft"].count == 2
    assert found["adapter_load"].mean == 0.25


def test_where_the_server_is_silent_the_first_request_of_an_adapter_is_cold() -> None:
    told = recording(
        {}, record(0, 1.0), record(1, 2.0), record(2, 3.0, adapter=""), record(3, 4.0, adapter="blue")
    )

    assert [one.is_cold for one in told.records] == [True, False, False, True]


def test_fairness_is_of_what_was_asked_for() -> None:
    found = fairness(samples())

    assert found["tenant_shares"] == {"default": 5 / 12, "other": 2 / 4}
    assert found["tenant_tokens_per_request_second"]["other"] == 1.0
    assert found["jain_tenants"] == pytest.approx((5 / 12 + 0.5) ** 2 / (2 * ((5 / 12) ** 2 + 0.25)))


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=20))
def test_jains_index_lies_between_one_nth_and_one(values: list[float]) -> None:
    found = jain_index({str(place): value for place, value in enumerate(values)})

    assert 1 / len(values) - 1e-9 <= found <= 1 + 1e-9


def test_jains_index_of_equal_shares_is_one() -> None:
    assert jain_index({"a": 2.0, "b": 2.0}) == 1.0
    assert jain_index({"a": 1.0, "b": 0.0}) == 0.5


def test_a_late_or_busy_generator_is_told() -> None:
    late = generator_health(samples(), [GeneratorLoad(0.2, 100, 3, 10.0)])
    busy = generator_health(
        Samples.of(recording({}, record(0, 1.0)), (0, 10)),
        [GeneratorLoad(0.2, 100, 3, 10.0), GeneratorLoad(0.9, 50, 4, 10.0)],
    )

    assert not late.is_valid
    assert "500.0 ms late" in late.complaints[0]
    assert busy.complaints == ("a generator process was busy for 90% of the time (85% are allowed)",)
    assert (busy.messages_per_s, busy.peak_streams) == (15.0, 7)


def test_a_quiet_and_punctual_generator_is_valid() -> None:
    health = generator_health(
        Samples.of(recording({}, record(0, 1.0)), (0, 10)), [GeneratorLoad(0.3, 0, 1, 10.0)]
    )

    assert health.is_valid
    assert health.complaints == ()


@pytest.mark.parametrize(
    ("count", "percent", "enough"),
    [(19, 50, False), (20, 50, True), (99, 90, False), (100, 90, True), (999, 99, False), (1000, 99, True)],
)
def test_a_percentile_needs_ten_samples_beyond_it(count: int, percent: float, enough: bool) -> None:
    assert has_enough(count, percent) is enough
    assert (percent in Distribution.of(np.arange(float(count))).percentiles) is enough


def test_percentiles_are_samples_and_their_interval_holds_them() -> None:
    found = Distribution.of(np.arange(1.0, 1001.0))

    assert found.percentiles[50].value == 500
    assert found.percentiles[99].value == 990
    for one in found.percentiles.values():
        assert one.low <= one.value <= one.high


def test_the_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    intervals = [Distribution.of(rng.exponential(1, 200), seed).percentiles[50] for seed in range(200)]

    hits = np.mean([one.low <= math.log(2) <= one.high for one in intervals])

    assert 0.89 <= hits <= 0.99


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50), st.floats(1, 100))
def test_nearest_rank_leaves_no_more_above_than_it_says(values: list[float], percent: float) -> None:
    ordered = np.sort(np.array(values))

    found = nearest_rank(ordered, percent)

    assert np.mean(ordered <= found) >= percent / 100 - 1e-9


def test_nothing_has_no_percentiles() -> None:
    assert Distribution.of(np.array([math.nan])).as_json() == {"n": 0}


def test_the_timeline_has_what_happened_in_each_slice() -> None:
    found = timeline(samples())

    assert found["slice_s"] == 0.25
    assert sum(found["errors"]) == 1
    assert sum(found["tokens_per_s"]) * 0.25 == 7
    assert sum(found["offered_per_s"]) * 0.25 == 4
    assert found["running"][found["at_s"].index(3.5)] == 1


def test_the_heat_map_has_a_row_for_each_adapter() -> None:
    found = heat_map(samples())

    assert sorted(found["adapters"]) == ["base", "blue", "red"]
    row = found["ttft_p50_s"][found["adapters"].index("blue")]
    assert [value for value in row if value is not None] == [1.0]
