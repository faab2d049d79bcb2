"""What the server's own metrics say about its batches."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

_SAMPLE = re.compile(r"^loraplex_batch_(adapters|sequences)_(sum|count) (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Sums over all steps of the server's life."""

    num_steps: float
    num_adapters: float  # distinct adapters, the base not counted
    num_sequences: float


def read_batch_totals(metrics_url: str) -> BatchTotals:
    """Raises OSError if the metrics port does not answer."""
    with urllib.request.urlopen(metrics_url, timeout=10) as response:
        return parse_batch_totals(response.read().decode())


def parse_batch_totals(text: str) -> BatchTotals:
    """From the Prometheus text format; what is absent counts 0."""
    samples = {(name, kind): float(value) for name, kind, value in _SAMPLE.findall(text)}
    return BatchTotals(
        num_steps=samples.get(("adapters", "count"), 0.0),
        num_adapters=samples.get(("adapters", "sum"), 0.0),
        num_sequences=samples.get(("sequences", "sum"), 0.0),
    )


def mean_since(before: BatchTotals, after: BatchTotals) -> tuple[float, float]:
    """(adapters, sequences) of the mean step between the two readings; 0 if there was none."""
    num_steps = after.num_steps - before.num_steps
    if num_steps <= 0:
        return 0.0, 0.0
    return (
        (after.num_adapters - before.num_adapters) / num_steps,
        (after.num_sequences - before.num_sequences) / num_steps,
    )
