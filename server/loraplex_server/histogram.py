"""A Prometheus histogram that one thread writes: no lock and no label lookup, for what is observed at every token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class LoopHistogram(Collector):
    """Owned by the front end's event loop; the metrics port's thread only reads it."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, buckets: Sequence[float]) -> None:
        """`buckets`: upper bounds, ascending; the one without a bound is added."""
        self._name = name
        self._text = text
        self._bounds = tuple(buckets)
        self._bound_labels = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        self._counts = [0] * len(self._bound_labels)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        buckets = list(zip(self._bound_labels, accumulate(list(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)
