"""Conditions like `ttft_p99>500ms` and `error_rate[tenant=shop]>1%`: what makes a run a failure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loraplex_loadtest.errors import ScenarioInvalidError
from loraplex_loadtest.figures.groups import DISTRIBUTIONS
from loraplex_loadtest.figures.percentiles import PERCENTILES, samples_for

_SYNTAX = re.compile(
    r"\s*(?P<figure>[a-z_]+?)(?:_(?P<part>p\d+(?:\.\d+)?|mean|min|max))?"
    r"(?:\[(?P<column>tenant|adapter|traffic)=(?P<group>[^\]]+)\])?"
    r"\s*(?P<compare><=|>=|<|>)\s*(?P<value>\d+(?:\.\d+)?(?:e-?\d+)?)\s*(?P<unit>us|ms|s|%)?\s*"
)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "%": 0.01, None: 1.0}
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_RATES = (
    "error_rate",
    "requests",
    "attempts_per_request",
    "ok",
    "offered_per_s",
    "requests_per_s",
    "goodput_per_s",
    "goodput_share",
    "tokens_per_s",
)
_SINGLE = {
    "jain_tenants": ("fairness", "jain_tenants"),
    "jain_adapters": ("fairness", "jain_adapters"),
    "jain_tenant_speed": ("fairness", "jain_tenant_speed"),
    "max_min_speed": ("fairness", "max_min_speed"),
    "send_lag_p99": ("generator", "send_lag_p99_s"),
    "cpu_share": ("generator", "cpu_share"),
    "counter_difference": ("reconciliation", "difference"),
}
_COLUMNS = {"tenant": "tenants", "adapter": "adapters", "traffic": "traffic"}


@dataclass(frozen=True, slots=True)
class Condition:
    """The run fails if this holds."""

    text: str
    figure: str
    part: str  # of a distribution; empty for single figures
    column: str  # empty: of all requests
    group: str
    compare: str
    bound: float  # in seconds, or the figure's own unit


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a condition."""

    condition: Condition
    value: float | None  # None: the run has too few samples for this figure
    count: int = 0  # samples of the figure, where it is a distribution

    @property
    def fails(self) -> bool:
        """A figure that cannot be told fails too: nobody can say that it holds."""
        if self.value is None:
            return True
        return _COMPARE[self.condition.compare](self.value, self.condition.bound)

    def text(self) -> str:
        if self.value is None:
            return f"{self.condition.text}: too few samples to tell{self._how_many()}"
        return f"{self.condition.text}: it is {self.value:.4g}"

    def _how_many(self) -> str:
        part = self.condition.part
        if not part.startswith("p"):
            return ""
        needed = samples_for(float(part[1:]))
        return f", {self.count} of the {needed} that {part} needs: run longer, or ask for a lower percentile"

    def as_json(self) -> dict[str, Any]:
        return {"condition": self.condition.text, "value": self.value, "fails": self.fails}


def parse_condition(text: str) -> Condition:
    """Raises ScenarioInvalidError that says what is possible."""
    found = _SYNTAX.fullmatch(text)
    if found is None:
        raise ScenarioInvalidError(
            f"cannot read {text!r}: write FIGURE_PART>BOUND, e.g. ttft_p90>500ms or error_rate>1%"
        )
    figure, part = found["figure"], found["part"] or ""
    if f"{figure}_{part}" in _SINGLE:
        figure, part = f"{figure}_{part}", ""
    if part and figure not in DISTRIBUTIONS:
        raise ScenarioInvalidError(
            f"{text!r}: no distribution {figure!r}; there are {', '.join(DISTRIBUTIONS)}"
        )
    if part.startswith("p") and float(part[1:]) not in PERCENTILES:
        known = ", ".join(f"p{percent:g}" for percent in PERCENTILES)
        raise ScenarioInvalidError(f"{text!r}: no percentile {part}; there are {known}")
    if not part and figure not in (*_RATES, *_SINGLE):
        told = f"{figure}_p99" if figure in DISTRIBUTIONS else ", ".join((*_RATES, *_SINGLE))
        raise ScenarioInvalidError(f"{text!r}: no figure {figure!r}; did you mean {told}?")
    if found["column"] and figure in _SINGLE:
        raise ScenarioInvalidError(f"{text!r}: {figure} is of the whole run")
    return Condition(
        text=text.strip(),
        figure=figure,
        part=part,
        column=found["column"] or "",
        group=found["group"] or "",
        compare=found["compare"],
        bound=float(found["value"]) * _UNITS[found["unit"]],
    )


def judge(condition: Condition, document: Mapping[str, Any]) -> Verdict:
    """A condition on a result document."""
    return Verdict(condition, figure_of(condition, document), _count_of(condition, document))


def figure_of(condition: Condition, document: Mapping[str, Any]) -> float | None:
    """None where the document does not have it."""
    if condition.figure in _SINGLE:
        section, key = _SINGLE[condition.figure]
        return _number((document.get(section) or {}).get(key))
    rates, figures = _of_group(condition, document)
    if not condition.part:
        return _number(rates.get(condition.figure))
    return part_of(figures.get(condition.figure, {}), condition.part)


def _count_of(condition: Condition, document: Mapping[str, Any]) -> int:
    if not condition.part:
        return 0
    _, figures = _of_group(condition, document)
    return int(figures.get(condition.figure, {}).get("n", 0))


def _of_group(
    condition: Condition, document: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Rates and distributions of the requests that the condition is about."""
    if not condition.column:
        return document["rates"], document["figures"]
    place = document[_COLUMNS[condition.column]].get(condition.group, {})
    return place, place.get("figures", {})


def part_of(figure: Mapping[str, Any], part: str) -> float | None:
    """`p99`, `mean` and so on of a distribution in a document."""
    found = figure.get(part)
    return _number(found["value"] if isinstance(found, Mapping) else found)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
