"""Whether a server falls further and further behind: then a trial need not run to its end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

MIN_SAMPLES = 10
_T_BOUND = 4.0
"""Standard errors that a slope must lie above 0: many, since a trial is looked at again with every slice."""
_MIN_GROWTH = 0.5
"""Growth over the time looked at, relative to the mean. A queue that grows from nothing grows by two thirds."""
_MAX_CORRELATION = 0.98


@dataclass(slots=True)
class OverSaturation:
    """Fed with streams in flight and mean TTFT, slice by slice; only the later half of them is looked at.

    The first half is the way to the steady state, in which streams in flight grow in any case. A queue that came with a
    burst of arrivals grows for a while as well: it proves nothing while first tokens are within `bearable_ttft_s`.
    """

    bearable_ttft_s: float = 0.0
    at_s: list[float] = field(default_factory=list)
    in_flight: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)

    def add(self, at_s: float, in_flight: float, ttft_s: float) -> None:
        """`ttft_s` is the mean of the slice's first tokens; NaN: there was none."""
        self.at_s.append(at_s)
        self.in_flight.append(in_flight)
        self.ttft_s.append(ttft_s)

    @property
    def is_certain(self) -> bool:
        """Whether both grow beyond doubt."""
        half = len(self.at_s) // 2
        return (
            grows(self.at_s[half:], self.in_flight[half:])
            and grows(self.at_s[half:], self.ttft_s[half:])
            and self._recent_ttft_s() > self.bearable_ttft_s
        )

    def _recent_ttft_s(self) -> float:
        """Mean of the last quarter's."""
        known = [value for value in self.ttft_s[-(len(self.ttft_s) // 4) :] if not math.isnan(value)]
        return sum(known) / len(known) if known else 0.0


def grows(at_s: list[float], values: list[float]) -> bool:
    """Whether a line through the values rises, surely and by much. NaN are left out.

    Neighbours are alike even where nothing grows (a stream in flight is seen in many slices), so the slope's standard
    error is that of as many independent samples as an AR(1) process holds: sqrt((1 + r) / (1 - r)) times the
    usual one, r being the correlation of neighbouring residuals.
    """
    x, y = np.array(at_s), np.array(values)
    known = ~np.isnan(y)
    x, y = x[known], y[known]
    if len(x) < MIN_SAMPLES or np.ptp(x) == 0:
        return False
    x = x - x.mean()
    slope = float((x * y).sum() / (x**2).sum())
    rest = y - y.mean() - slope * x
    variance = float((rest**2).sum() / (len(x) - 2))
    error = float(np.sqrt(variance / (x**2).sum() * _inflation(rest)))
    return slope > _T_BOUND * error and slope * float(np.ptp(x)) > _MIN_GROWTH * abs(float(y.mean()))


def _inflation(rest: npt.NDArray[np.float64]) -> float:
    """Of a mean's variance, by what each of the residuals tells about the next."""
    total = float((rest**2).sum())
    if total == 0:
        return 1.0
    correlation = float((rest[1:] * rest[:-1]).sum()) / total
    correlation = min(max(correlation, 0.0), _MAX_CORRELATION)
    return (1 + correlation) / (1 - correlation)
