"""The largest rate that still meets its objectives: a geometric ramp, then bisection. Decisions only, no clock."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from loraplex_loadtest.spec import Spec


class SearchSettings(Spec):
    """How to search."""

    start_rate: PositiveFloat = 1.0  # requests per second
    max_rate: PositiveFloat = 10_000.0
    growth: Annotated[float, Field(gt=1)] = 2.0  # of the ramp
    tolerance: Annotated[float, Field(gt=0, le=1)] = 0.05  # relative width at which the bisection ends
    min_goodput: Annotated[float, Field(gt=0, le=1)] = (
        0.95  # share of good requests that a sustained rate has
    )
    attempts: PositiveInt = 1  # a rate fails only if it fails so many times
    trial_s: PositiveFloat = 20.0

    @model_validator(mode="after")
    def _check(self) -> SearchSettings:
        if self.start_rate > self.max_rate:
            raise ValueError(
                f"the ramp begins with {self.start_rate:g}/s, above its end of {self.max_rate:g}/s"
            )
        return self


class Trial(Spec):
    """What was found at one rate."""

    rate: float
    goodput_share: float
    requests_per_s: float
    tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    e2e_p50_s: float | None
    was_stopped: bool  # over-saturated beyond doubt
    is_valid: bool  # False: the generator was the bottleneck
    is_good: bool


class Saturation(Spec):
    """The answer and the way to it."""

    sustained_rate: float  # the largest good one; 0: none was
    failed_rate: float | None  # the smallest bad one; None: `max_rate` was reached
    generator_limited: bool  # the smallest bad rate was beyond the generator, not the server
    trials: tuple[Trial, ...]


def search(settings: SearchSettings) -> Generator[float, Trial, Saturation]:
    """Yields rates to try, is sent what was found, returns the answer."""
    trials: list[Trial] = []
    good, bad, rate = 0.0, None, settings.start_rate
    is_limited = False
    while True:
        trial = yield rate
        trials.append(trial)
        for _ in range(settings.attempts - 1):
            if trial.is_good:
                break
            trial = yield rate
            trials.append(trial)
        if trial.is_good:
            good = max(good, rate)
        else:
            bad = rate if bad is None else min(bad, rate)
            is_limited = not trial.is_valid  # bad rates only ever get smaller
        next_rate = _next(settings, good, bad)
        if next_rate is None:
            return Saturation(
                sustained_rate=good, failed_rate=bad, generator_limited=is_limited, trials=tuple(trials)
            )
        rate = next_rate


def _next(settings: SearchSettings, good: float, bad: float | None) -> float | None:
    if bad is None:
        return min(good * settings.growth, settings.max_rate) if good < settings.max_rate else None
    if not good:
        # Down from where the ramp began, until the rate is not worth the name.
        return bad / settings.growth if bad > settings.start_rate * 1e-3 else None
    if bad / good - 1 <= settings.tolerance:
        return None
    return float((good * bad) ** 0.5)
