"""How sure a measured share or difference is, and what may be concluded from it.

Shares get Wilson's interval. Differences are of pairs, base and adapter on the same questions, and get a paired
bootstrap. To the observed pairs one won and one lost question are added before resampling, as Agresti and Min do for
the interval of Wald: else few questions without any difference would look like certainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["pass", "fail", "inconclusive"]
_RESAMPLES = 10_000
_SEED = 20_260_801


@dataclass(frozen=True, slots=True)
class Share:
    """A share of questions, or a mean score, in [0, 1], with its interval."""

    value: float
    low: float
    high: float
    n: int  # questions


@dataclass(frozen=True, slots=True)
class Change:
    """Adapter minus base on the same questions, in points (percent of questions), with its interval."""

    points: float
    low: float
    high: float
    n: int
    gained: int  # questions that only the adapter answers rightly
    lost: int  # questions that only the base answers rightly
    p_value: float  # McNemar's exact test of gained against lost, two-sided


def share(scores: Sequence[float], confidence: float) -> Share:
    """Mean of scores in [0, 1]. Of nothing, 0 within [0, 1]."""
    n = len(scores)
    if n == 0:
        return Share(0.0, 0.0, 1.0, 0)
    value = float(np.mean(scores))
    # For scores between 0 and 1 the binomial is the widest distribution of that mean.
    low, high = _wilson(value, n, confidence)
    return Share(value, low, high, n)


def paired_change(base: Sequence[float], adapter: Sequence[float], confidence: float) -> Change:
    """Compare scores in [0, 1] of the same questions in the same order; the same input gives the same interval."""
    if len(base) != len(adapter):
        raise ValueError("base and adapter must have answered the same questions")
    if not base:
        return Change(0.0, -100.0, 100.0, 0, 0, 0, 1.0)
    differences = np.asarray(adapter, dtype=float) - np.asarray(base, dtype=float)
    low, high = _bootstrap(np.append(differences, [1.0, -1.0]), confidence)
    gained, lost = int((differences >= 0.5).sum()), int((differences <= -0.5).sum())
    return Change(
        points=100 * float(differences.mean()),
        low=100 * low,
        high=100 * high,
        n=len(differences),
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Probability of a split at least as uneven, were gains and losses equally likely."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def verdict_of_gain(change: Change, min_points: float) -> Verdict:
    """Pass: surely above `min_points`. Fail: surely not. Else the questions are too few to tell."""
    if change.low > min_points:
        return "pass"
    return "fail" if change.high <= min_points else "inconclusive"


def verdict_of_drop(change: Change, max_points: float) -> Verdict:
    """Pass: surely lost no more than `max_points`. Fail: surely more. Else the questions are too few to tell."""
    if -change.low <= max_points:
        return "pass"
    return "fail" if -change.high > max_points else "inconclusive"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """One failure fails all, one doubt leaves all in doubt."""
    if "fail" in verdicts:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def _wilson(value: float, n: int, confidence: float) -> tuple[float, float]:
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))
    center = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(value * (1 - value) / n + z * z / (4 * n * n)))
    return max(0.0, center - half), min(1.0, center + half)


def _bootstrap(differences: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentiles of the mean over resampled pairs."""
    values, counts = np.unique(differences, return_counts=True)
    n = len(differences)
    # How often each value is drawn is multinomial, which saves the drawing of every pair.
    drawn = np.random.default_rng(_SEED).multinomial(n, counts / n, size=_RESAMPLES)
    means = drawn @ values / n
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
