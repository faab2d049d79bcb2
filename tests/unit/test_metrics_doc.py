from __future__ import annotations

from pathlib import Path
from typing import Any

from loraplex_server.metrics import MAX_ADAPTER_LABELS, Metrics

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text()


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    collectors: Any = (
        Metrics().registry._collector_to_names
    )  # prometheus_client shows label names nowhere else
    metrics = {collector._name: (collector._type, list(collector._labelnames)) for collector in collectors}
    metrics["loraplex_build"] = (
        "info",
        ["version", "architecture", "quantization", "device", "base_fingerprint"],
    )

    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `loraplex_")]
    documented = {
        name.strip(" `"): (kind.strip(), [label.strip(" `") for label in labels.split(",") if label.strip()])
        for name, kind, labels, _ in rows
    }

    assert documented == metrics


def test_the_bound_of_the_labels_is_the_documented_one() -> None:
    assert f"first {MAX_ADAPTER_LABELS} names" in PAGE
