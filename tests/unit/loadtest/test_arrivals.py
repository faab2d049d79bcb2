"""Arrivals have the statistics that they are named for. No clock: they are numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from loraplex_loadtest.errors import ScenarioInvalidError
from loraplex_loadtest.workload.arrivals import Arrivals, ClosedLoop, duration_of, read_trace

MAKE: TypeAdapter[Any] = TypeAdapter(Arrivals)


def times(document: dict[str, Any], seed: int = 0) -> Any:
    return MAKE.validate_python(document).times(np.random.default_rng(seed))


def gaps(document: dict[str, Any]) -> Any:
    return np.diff(times(document))


@pytest.mark.parametrize("kind", ["constant", "poisson", "gamma"])
def test_the_mean_rate_is_the_one_that_was_asked_for(kind: str) -> None:
    extra = {"cv": 2.0} if kind == "gamma" else {}

    found = times({"kind": kind, "rate": 50, "duration_s": 2000, **extra})

    assert len(found) / 2000 == pytest.approx(50, rel=0.03)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
def test_gamma_gaps_vary_as_much_as_was_asked_for(cv: float) -> None:
    found = gaps({"kind": "gamma", "rate": 20, "cv": cv, "duration_s": 20_000})

    assert found.std() / found.mean() == pytest.approx(cv, rel=0.03)


def test_poisson_gaps_are_exponential() -> None:
    found = gaps({"kind": "poisson", "rate": 10, "duration_s": 20_000})

    assert found.std() / found.mean() == pytest.approx(1, rel=0.02)
    assert np.mean(found > 0.1) == pytest.approx(np.exp(-1), rel=0.02)


@pytest.mark.parametrize(
    "document", [{"kind": "poisson"}, {"kind": "gamma", "cv": 3.0}], ids=["poisson", "gamma"]
)
def test_gaps_are_independent(document: dict[str, Any]) -> None:
    found = gaps({**document, "rate": 10, "duration_s": 20_000})
    first, second = found[:-1] - found.mean(), found[1:] - found.mean()

    correlation = (first * second).mean() / found.var()

    assert abs(correlation) < 4 / np.sqrt(len(found))


def test_poisson_counts_in_equal_spans_vary_as_their_mean() -> None:
    found = times({"kind": "poisson", "rate": 20, "duration_s": 10_000})
    counts = np.bincount(found.astype(int), minlength=10_000)

    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.06)


def test_a_constant_rate_has_equal_gaps() -> None:
    assert np.allclose(gaps({"kind": "constant", "rate": 8, "duration_s": 100}), 1 / 8)


@pytest.mark.parametrize("process", ["constant", "poisson", "gamma"])
def test_a_step_has_each_rate_in_its_time(process: str) -> None:
    steps = [{"rate": 10, "duration_s": 500}, {"rate": 0, "duration_s": 100}, {"rate": 40, "duration_s": 500}]

    found = times({"kind": "step", "process": process, "cv": 1.5, "steps": steps})

    low, none, high = np.histogram(found, [0, 500, 600, 1100])[0]
    assert low / 500 == pytest.approx(10, rel=0.1)
    assert none <= 1
    assert high / 500 == pytest.approx(40, rel=0.1)


def test_a_ramp_grows_linearly() -> None:
    found = times({"kind": "ramp", "from_rate": 0, "to_rate": 100, "duration_s": 400, "process": "constant"})

    counts = np.histogram(found, np.linspace(0, 400, 5))[0] / 100

    assert counts == pytest.approx([12.5, 37.5, 62.5, 87.5], abs=0.5)


def test_a_ramp_may_fall_and_may_be_flat() -> None:
    falling = times(
        {"kind": "ramp", "from_rate": 30, "to_rate": 10, "duration_s": 100, "process": "constant"}
    )
    flat = times({"kind": "ramp", "from_rate": 20, "to_rate": 20, "duration_s": 100, "process": "constant"})

    assert len(falling) == len(flat) == 2000
    assert falling[1000] < 50 - 5


def test_a_sine_swings_around_its_mean() -> None:
    wave = {
        "kind": "sine",
        "rate": 50,
        "amplitude": 0.8,
        "period_s": 100,
        "duration_s": 1000,
        "process": "constant",
    }

    found = times(wave)

    rising, falling = (np.mean((found % 100 > start) & (found % 100 <= start + 50)) for start in (0, 50))
    assert len(found) == pytest.approx(50_000, abs=2)
    assert rising / falling == pytest.approx((1 + 1.6 / np.pi) / (1 - 1.6 / np.pi), rel=0.01)


OPEN: list[dict[str, Any]] = [
    {"kind": "constant", "rate": 7},
    {"kind": "poisson", "rate": 7},
    {"kind": "gamma", "rate": 7, "cv": 3},
    {"kind": "ramp", "from_rate": 1, "to_rate": 9},
    {"kind": "sine", "rate": 7},
]


@given(st.sampled_from(OPEN), st.floats(0.5, 50), st.integers(0, 2**32))
def test_moments_ascend_within_the_duration_and_depend_on_the_seed_alone(
    document: dict[str, Any], duration_s: float, seed: int
) -> None:
    document = {**document, "duration_s": duration_s}

    found = times(document, seed)

    assert np.all(np.diff(found) >= 0)
    assert np.all((found >= 0) & (found <= duration_s * (1 + 1e-9)))
    assert np.array_equal(found, times(document, seed))


def test_a_trace_is_replayed_in_order_from_zero_and_faster(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("timestamp,input_len,output_len,adapter\n12,30,5,red\n10,20,4,\n")

    rows = read_trace(file, speed=2)

    assert [(row.at_s, row.input_len, row.output_len, row.adapter) for row in rows] == [
        (0.0, 20, 4, None),
        (1.0, 30, 5, "red"),
    ]
    assert times({"kind": "trace", "file": file}).tolist() == [0.0, 2.0]
    assert duration_of(MAKE.validate_python({"kind": "trace", "file": file})) == 2.0


@pytest.mark.parametrize("text", ["timestamp\nnever\n", "time\n1\n", "timestamp\n"])
def test_a_trace_that_cannot_be_read_says_so(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)

    with pytest.raises(ScenarioInvalidError, match=r"trace\.csv"):
        read_trace(file)


def test_think_times_have_their_mean() -> None:
    loop = ClosedLoop(kind="closed", users=3, think_s=0.5, think="exponential", requests=20_000)

    assert loop.think_times(np.random.default_rng(0)).mean() == pytest.approx(0.5, rel=0.03)


def test_more_requests_than_memory_holds_are_refused() -> None:
    with pytest.raises(ScenarioInvalidError, match="lower rate or duration"):
        times({"kind": "poisson", "rate": 1e6, "duration_s": 1000})
