"""When requests are meant to be sent: pure functions of a seed, without a clock.

An open loop is a point process of mean rate 1, stretched by the rate's integral: the n-th request is meant for the
moment at which the integral of the rate reaches the n-th point. So a ramp may be as bursty as a constant rate.
"""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from loraplex_loadtest.errors import ScenarioInvalidError
from loraplex_loadtest.spec import Spec

Times = NDArray[np.float64]
"""Seconds since the run began, ascending."""

MAX_REQUESTS = 2_000_000


class _Timed(Spec):
    duration_s: PositiveFloat = 30.0


class _Varying(_Timed):
    process: Literal["constant", "poisson", "gamma"] = "poisson"
    cv: PositiveFloat = 1.0  # of the gaps, for gamma; vLLM's burstiness is 1 / cv²

    def _points(self, total: float, rng: np.random.Generator) -> Times:
        return unit_points(self.process, self.cv, total, rng)


class ConstantArrivals(_Timed):
    """Equal gaps; the first request at half a gap, so that processes of several rates do not beat."""

    kind: Literal["constant"]
    rate: PositiveFloat  # requests per second

    def times(self, rng: np.random.Generator) -> Times:
        return unit_points("constant", 1.0, self.rate * self.duration_s, rng) / self.rate


class PoissonArrivals(_Timed):
    """Independent exponential gaps."""

    kind: Literal["poisson"]
    rate: PositiveFloat

    def times(self, rng: np.random.Generator) -> Times:
        return unit_points("poisson", 1.0, self.rate * self.duration_s, rng) / self.rate


class GammaArrivals(_Timed):
    """Independent gamma gaps: cv 1 is Poisson, above it comes in bursts."""

    kind: Literal["gamma"]
    rate: PositiveFloat
    cv: PositiveFloat

    def times(self, rng: np.random.Generator) -> Times:
        return unit_points("gamma", self.cv, self.rate * self.duration_s, rng) / self.rate


class Stage(Spec):
    """A rate for a while."""

    rate: Annotated[float, Field(ge=0)]
    duration_s: PositiveFloat


class StepArrivals(_Varying):
    """One rate after the other; `duration_s` is their sum."""

    kind: Literal["step"]
    steps: Annotated[tuple[Stage, ...], Field(min_length=1)]

    def times(self, rng: np.random.Generator) -> Times:
        edges = np.cumsum([0.0, *(step.duration_s for step in self.steps)])
        integral = np.cumsum([0.0, *(step.duration_s * step.rate for step in self.steps)])
        points = self._points(float(integral[-1]), rng)
        # Where the rate is 0 the integral stands still; no point falls there but by rounding.
        return np.asarray(np.interp(points, integral, edges))


class RampArrivals(_Varying):
    """A rate that grows or falls linearly."""

    kind: Literal["ramp"]
    from_rate: Annotated[float, Field(ge=0)]
    to_rate: PositiveFloat

    def times(self, rng: np.random.Generator) -> Times:
        slope = (self.to_rate - self.from_rate) / self.duration_s
        points = self._points((self.from_rate + self.to_rate) / 2 * self.duration_s, rng)
        if slope == 0:
            return np.asarray(points / self.from_rate)
        rate_then = np.sqrt(self.from_rate**2 + 2 * slope * points)
        return np.asarray((rate_then - self.from_rate) / slope)


class SineArrivals(_Varying):
    """A rate that swings around its mean by `amplitude`, a share of it."""

    kind: Literal["sine"]
    rate: PositiveFloat
    amplitude: Annotated[float, Field(ge=0, le=1)] = 0.5
    period_s: PositiveFloat = 30.0

    def times(self, rng: np.random.Generator) -> Times:
        grid = np.linspace(0.0, self.duration_s, max(1001, int(1000 * self.duration_s / self.period_s)))
        turn = 2 * np.pi / self.period_s
        integral = self.rate * (grid + self.amplitude / turn * (1 - np.cos(turn * grid)))
        return np.asarray(np.interp(self._points(float(integral[-1]), rng), integral, grid))


class TraceArrivals(Spec):
    """Requests as they once came: CSV or JSONL with timestamp; input_len, output_len and adapter where it has them."""

    kind: Literal["trace"]
    file: Path
    speed: PositiveFloat = 1.0  # 2: twice as fast

    def times(self, rng: np.random.Generator) -> Times:
        return np.array([row.at_s for row in self.rows()])

    def rows(self) -> list[TraceRow]:
        """In order of time, the first at 0."""
        return read_trace(self.file, self.speed)


class ClosedLoop(_Timed):
    """Users who wait for each answer, think, and ask again. Not an open loop: a slow server slows them."""

    kind: Literal["closed"]
    users: PositiveInt
    think_s: Annotated[float, Field(ge=0)] = 0.0
    think: Literal["fixed", "exponential"] = "fixed"
    requests: PositiveInt = 2048  # prepared; users begin again with them when they run out

    def think_times(self, rng: np.random.Generator) -> Times:
        """Seconds before each of the `requests`."""
        if self.think == "exponential" and self.think_s:
            return rng.exponential(self.think_s, self.requests)
        return np.full(self.requests, self.think_s)


class TraceRow(Spec):
    """A line of a trace; None: the scenario's own."""

    at_s: float
    input_len: PositiveInt | None = None
    output_len: PositiveInt | None = None
    adapter: str | None = None


OpenArrivals = (
    ConstantArrivals
    | PoissonArrivals
    | GammaArrivals
    | StepArrivals
    | RampArrivals
    | SineArrivals
    | TraceArrivals
)
Arrivals = Annotated[OpenArrivals | ClosedLoop, Field(discriminator="kind")]


def unit_points(process: str, cv: float, total: float, rng: np.random.Generator) -> Times:
    """Points of a process of mean rate 1 in (0, total]."""
    if total > MAX_REQUESTS:
        raise ScenarioInvalidError(
            f"{total:.0f} requests are more than {MAX_REQUESTS}; lower rate or duration"
        )
    if process == "constant":
        return np.arange(0.5, total, 1.0)
    shape = 1.0 if process == "poisson" else 1 / cv**2
    points = np.zeros(0)
    while not len(points) or points[-1] <= total:
        batch = max(64, int((total - (points[-1] if len(points) else 0.0)) * 1.1) + 1)
        start = points[-1] if len(points) else 0.0
        points = np.concatenate([points, start + np.cumsum(rng.gamma(shape, 1 / shape, batch))])
    return points[points <= total]


def duration_of(arrivals: OpenArrivals | ClosedLoop) -> float:
    """Seconds over which requests are sent."""
    if isinstance(arrivals, StepArrivals):
        return sum(step.duration_s for step in arrivals.steps)
    if isinstance(arrivals, TraceArrivals):
        return arrivals.rows()[-1].at_s
    return arrivals.duration_s


def read_trace(file: Path, speed: float = 1.0) -> list[TraceRow]:
    """Rows of a trace. Raises ScenarioInvalidError with the line at fault."""
    lines = read_rows(file)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            at_s = float(line["timestamp"])
            rows.append(
                TraceRow(
                    at_s=at_s,
                    input_len=_integer(line.get("input_len")),
                    output_len=_integer(line.get("output_len")),
                    adapter=line.get("adapter") or None,
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ScenarioInvalidError(f"row {number} of the trace {file.name}: {error}") from None
    if not rows:
        raise ScenarioInvalidError(f"the trace {file.name} has no rows")
    if any(later.at_s < earlier.at_s for earlier, later in pairwise(rows)):
        rows.sort(key=lambda row: row.at_s)
    first_s = rows[0].at_s
    return [row.model_copy(update={"at_s": (row.at_s - first_s) / speed}) for row in rows]


def read_rows(file: Path) -> list[dict[str, str]]:
    """Objects of a JSONL file, or rows of a CSV file with a header."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ScenarioInvalidError(f"cannot read {file.name}: {error.strerror}") from None
    if file.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ScenarioInvalidError(f"{file.name} is not JSON lines: {error}") from None


def _integer(value: object) -> int | None:
    return None if value in (None, "") else int(float(str(value)))
