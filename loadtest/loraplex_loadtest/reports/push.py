"""Figures to a Prometheus push gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraplex_loadtest.conditions import part_of
from loraplex_loadtest.errors import TargetUnreadyError

_PARTS = ("p50", "p90", "p95", "p99", "p99.9")
_JOB = "loraplex_loadtest"


def push_figures(document: Mapping[str, Any], url: str) -> None:
    """Replaces what an earlier run of this scenario pushed. Raises TargetUnreadyError if the gateway refuses."""
    from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

    registry = CollectorRegistry()
    latencies = Gauge(
        "loraplex_loadtest_seconds", "Percentiles of a figure.", ["figure", "percentile"], registry=registry
    )
    rates = Gauge("loraplex_loadtest_rate", "Rates and shares.", ["figure"], registry=registry)
    valid = Gauge("loraplex_loadtest_valid", "1 if the generator kept its plan.", registry=registry)
    for name, figure in document["figures"].items():
        for part in _PARTS:
            if (value := part_of(figure, part)) is not None:
                latencies.labels(name, part).set(value)
    for name, value in document["rates"].items():
        if isinstance(value, int | float):
            rates.labels(name).set(value)
    valid.set(float(document["is_valid"]))
    try:
        push_to_gateway(
            url, job=_JOB, registry=registry, grouping_key={"scenario": document["scenario"]["name"]}
        )
    except OSError as error:
        raise TargetUnreadyError(f"the push gateway does not take the figures: {error}") from None
