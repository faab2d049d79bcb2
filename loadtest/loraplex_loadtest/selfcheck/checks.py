"""What the self-test compares: a known parameter with what the tool found of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from loraplex_loadtest.fake.law import LatencyLaw
from loraplex_loadtest.figures.samples import Samples

TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Check:
    """A parameter of the fake server, as it is and as it was found."""

    name: str
    expected: float
    found: float
    unit: str
    tolerance: float = TOLERANCE  # relative to what is expected; of it itself where that is 0

    @property
    def error(self) -> float:
        """Relative; absolute where 0 is expected."""
        return abs(self.found - self.expected) / (abs(self.expected) or 1.0)

    @property
    def is_right(self) -> bool:
        return self.error <= self.tolerance  # NaN is not

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "expected": self.expected,
            "found": self.found,
            "unit": self.unit,
            "error": self.error,
            "tolerance": self.tolerance,
            "is_right": self.is_right,
        }


def law_checks(samples: Samples, law: LatencyLaw) -> list[Check]:
    """The law's parameters, recovered from what a client can see.

    First token: the median of each prompt length's warm requests, and a line through them. Medians, since a machine
    that does other work delays some of the messages and none is ever early.
    """
    warm = samples.is_ok & ~samples.is_cold
    lengths = np.unique(samples.prompt_tokens[warm])
    medians = [float(np.median(samples.service_ttft_s[warm & (samples.prompt_tokens == n)])) for n in lengths]
    slope, intercept = np.polyfit(lengths, medians, 1)
    cold = samples.is_ok & samples.is_cold
    extra = samples.service_ttft_s[cold] - (intercept + slope * samples.prompt_tokens[cold])
    everything = np.ones(len(samples.is_ok), dtype=np.bool_)
    return [
        Check("first token, without the prompt", law.first_token_s, float(intercept), "s"),
        Check("first token, per token of the prompt", law.per_prompt_token_s, float(slope), "s"),
        Check("time per output token", law.per_token_s, float(np.nanmedian(samples.tpot_s)), "s"),
        Check("inter-token latency", law.per_token_s, float(samples.inter_token_s(everything).mean()), "s"),
        Check("adapter load", law.adapter_load_s, float(np.median(extra)), "s"),
    ]
