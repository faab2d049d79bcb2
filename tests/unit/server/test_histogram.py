"""The loop's histogram exposes what prometheus_client's own would."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from loraplex_server.histogram import LoopHistogram

BUCKETS = (0.005, 0.01, 0.25, 1, 2.5)
VALUES = (0.0, 0.005, 0.0051, 0.25, 0.9, 1.0, 3.0, 40.0)


def samples(registry: CollectorRegistry) -> set[str]:
    lines = generate_latest(registry).decode().splitlines()
    return {line for line in lines if not line.startswith("#") and "_created" not in line}


def test_buckets_count_and_sum_are_those_of_prometheus_clients_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = LoopHistogram(ours, "latency_seconds", "text", BUCKETS)
    reference = Histogram("latency_seconds", "text", buckets=BUCKETS, registry=theirs)

    for value in VALUES:
        histogram.observe(value)
        reference.observe(value)

    assert samples(ours) == samples(theirs)


def test_a_histogram_without_observations_is_exposed_too() -> None:
    registry = CollectorRegistry()

    LoopHistogram(registry, "latency_seconds", "text", BUCKETS)

    assert registry.get_sample_value("latency_seconds_count") == 0
    assert registry.get_sample_value("latency_seconds_bucket", {"le": "+Inf"}) == 0
