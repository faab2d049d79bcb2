"""A distribution as it may be told: percentiles only where there are samples enough, each with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
CURVE_POINTS = (*range(0, 100), 99.5, 99.9, 100)
"""Percentiles that a curve is drawn through."""
_RESAMPLES = 1000
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Percentile:
    """A value with the bounds of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Distribution:
    """Of one figure; every number in the figure's own unit."""

    count: int
    mean: float
    low: float
    high: float
    percentiles: dict[float, Percentile]  # those that `count` allows
    curve: tuple[float, ...]  # at CURVE_POINTS; empty without samples

    @classmethod
    def of(cls, values: Values, seed: int = 0) -> Distribution:
        """NaN are left out: a request that never had the figure says nothing of it."""
        ordered = np.sort(values[~np.isnan(values)])
        if not len(ordered):
            return cls(0, math.nan, math.nan, math.nan, {}, ())
        rng = np.random.default_rng(seed)
        return cls(
            count=len(ordered),
            mean=float(ordered.mean()),
            low=float(ordered[0]),
            high=float(ordered[-1]),
            percentiles={
                percent: _percentile(ordered, percent, rng)
                for percent in PERCENTILES
                if has_enough(len(ordered), percent)
            },
            curve=tuple(float(value) for value in np.percentile(ordered, CURVE_POINTS)),
        )

    def as_json(self) -> dict[str, Any]:
        """`p50` and so on with `value`, `low` and `high`; a percentile with too few samples is not there."""
        found: dict[str, Any] = {"n": self.count}
        if self.count:
            found |= {"mean": self.mean, "min": self.low, "max": self.high}
        for percent, one in self.percentiles.items():
            found[percentile_name(percent)] = {"value": one.value, "low": one.low, "high": one.high}
        return found


def percentile_name(percent: float) -> str:
    """p50, p99.9"""
    return f"p{percent:g}"


def has_enough(count: int, percent: float) -> bool:
    """Ten samples beyond the percentile at least: fewer, and it is an anecdote."""
    return count * (100 - percent) >= 1000 - 1e-9


def samples_for(percent: float) -> int:
    """The fewest that `has_enough` takes."""
    return math.ceil(1000 / (100 - percent) - 1e-6)


def nearest_rank(ordered: Values, percent: float) -> float:
    """The smallest sample that is not below `percent` of all."""
    return float(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)])


def _percentile(ordered: Values, percent: float, rng: np.random.Generator) -> Percentile:
    """The bootstrap of an order statistic needs no resampling: its rank among n draws is drawn from a beta."""
    count = len(ordered)
    rank = max(1, math.ceil(count * percent / 100))
    places = np.floor(rng.beta(rank, count - rank + 1, _RESAMPLES) * count).astype(np.int64)
    resampled = ordered[np.minimum(places, count - 1)]
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Percentile(nearest_rank(ordered, percent), float(low), float(high))
