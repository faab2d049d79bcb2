"""What the server's own metrics say about its batches."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

_SAMPLE = re.compile(
    r'^loraplex_batch_(adapters_sum|adapters_count|adapters_bucket{le="0.0"}|sequences_sum) (\S+)$',
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Sums over all steps of the server's life."""

    num_steps: float
    num_base_only_steps: float  # no sequence of the step had an adapter
    num_adapters: float  # distinct adapters, the base not counted
    num_sequences: float


@dataclass(frozen=True, slots=True)
class BatchMeans:
    """Of the steps between two readings; 0 where there was none."""

    sequences: float
    adapters: float  # distinct adapters in a step that had any


def read_batch_totals(metrics_url: str) -> BatchTotals:
    """Raises OSError if the metrics port does not answer."""
    with urllib.request.urlopen(metrics_url, timeout=10) as response:
        return parse_batch_totals(response.read().decode())


def parse_batch_totals(text: str) -> BatchTotals:
    """From the Prometheus text format; what is absent counts 0."""
    samples = {name: float(value) for name, value in _SAMPLE.findall(text)}
    return BatchTotals(
        num_steps=samples.get("adapters_count", 0.0),
        num_base_only_steps=samples.get('adapters_bucket{le="0.0"}', 0.0),
        num_adapters=samples.get("adapters_sum", 0.0),
        num_sequences=samples.get("sequences_sum", 0.0),
    )


def means_between(before: BatchTotals, after: BatchTotals) -> BatchMeans:
    """What happened after the first reading and up to the second."""
    num_steps = after.num_steps - before.num_steps
    num_adapter_steps = num_steps - (after.num_base_only_steps - before.num_base_only_steps)
    return BatchMeans(
        sequences=(after.num_sequences - before.num_sequences) / num_steps if num_steps else 0.0,
        adapters=(after.num_adapters - before.num_adapters) / num_adapter_steps if num_adapter_steps else 0.0,
    )
