"""Two results beside each other, and what got worse beyond doubt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraplex_loadtest.conditions import part_of

DEFAULT_THRESHOLD = 0.05
_LOWER_IS_BETTER = ("ttft", "cold_ttft", "warm_ttft", "tpot", "itl", "e2e")
_PARTS = ("p50", "p90", "p99")
_HIGHER_IS_BETTER = ("tokens_per_s", "requests_per_s", "goodput_share")


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in both."""

    figure: str
    before: float
    after: float
    lower_is_better: bool
    overlaps: bool  # the bootstrap intervals have values in common: it may be chance

    @property
    def ratio(self) -> float:
        """After over before; infinite if it was 0 before."""
        return self.after / self.before if self.before else float("inf" if self.after else 1)

    def is_regression(self, threshold: float) -> bool:
        """Worse by more than `threshold`, and not by chance."""
        worse = self.ratio - 1 if self.lower_is_better else 1 - self.ratio
        return worse > threshold and not self.overlaps

    def as_json(self, threshold: float) -> dict[str, Any]:
        return {
            "figure": self.figure,
            "before": self.before,
            "after": self.after,
            "ratio": self.ratio if math.isfinite(self.ratio) else None,  # JSON has no infinity
            "overlaps": self.overlaps,
            "is_regression": self.is_regression(threshold),
        }


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Figures that both documents have."""
    changes = []
    for name in _LOWER_IS_BETTER:
        first, second = before["figures"].get(name, {}), after["figures"].get(name, {})
        for part in _PARTS:
            old, new = part_of(first, part), part_of(second, part)
            if old is not None and new is not None:
                changes.append(Change(f"{name}_{part}", old, new, True, _overlap(first[part], second[part])))
    for name in _HIGHER_IS_BETTER:
        changes.append(Change(name, before["rates"][name], after["rates"][name], False, False))
    errors = (before["rates"]["error_rate"], after["rates"]["error_rate"])
    changes.append(Change("error_rate", *errors, True, False))
    return changes


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Reasons why the two may not be comparable, for people."""
    told = []
    for name in ("traffic", "window", "seed"):
        if before["scenario"].get(name) != after["scenario"].get(name):
            told.append(f"the scenarios differ in {name}")
    if before["environment"].get("processor") != after["environment"].get("processor"):
        told.append("the generators ran on different processors")
    for label, document in (("first", before), ("second", after)):
        if not document["is_valid"]:
            told.append(f"the {label} run is invalid: its generator was the bottleneck")
    return told


def _overlap(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    return first["low"] <= second["high"] and second["low"] <= first["high"]
