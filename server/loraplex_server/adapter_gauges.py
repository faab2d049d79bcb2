"""Gauges of each adapter that has a label, computed when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class AdapterGauge(Collector):
    """`values` is called from the scrape's thread and gives the value of each adapter's label."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, values: Callable[[], dict[str, float]]
    ) -> None:
        self._name = name
        self._labelnames = ("adapter",)
        self._text = text
        self._values = values
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labelnames)
        for adapter, value in sorted(self._values().items()):
            family.add_metric([adapter], value)
        yield family
