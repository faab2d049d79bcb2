"""Whether a server falls further and further behind: then a trial need not run to its end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

MIN_SAMPLES = 10
_T_BOUND = 3.0
"""Standard errors that a slope must lie above 0."""
_MIN_GROWTH = 0.25
"""Growth over the time looked at, relative to the mean: less does no harm."""


@dataclass(slots=True)
class OverSaturation:
    """Fed with streams in flight and mean TTFT, slice by slice; only the later half of them is looked at.

    The first half is the way to the steady state, in which streams in flight grow in any case.
    """

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
        return grows(self.at_s[half:], self.in_flight[half:]) and grows(self.at_s[half:], self.ttft_s[half:])


def grows(at_s: list[float], values: list[float]) -> bool:
    """Whether a line through the values rises, surely and by much. NaN are left out."""
    x, y = np.array(at_s), np.array(values)
    known = ~np.isnan(y)
    x, y = x[known], y[known]
    if len(x) < MIN_SAMPLES or np.ptp(x) == 0:
        return False
    x = x - x.mean()
    slope = float((x * y).sum() / (x**2).sum())
    rest = y - y.mean() - slope * x
    error = float(np.sqrt((rest**2).sum() / (len(x) - 2) / (x**2).sum()))
    return slope > _T_BOUND * error and slope * float(np.ptp(x)) > _MIN_GROWTH * abs(float(y.mean()))
