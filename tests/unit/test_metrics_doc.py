from __future__ import annotations

from pathlib import Path
from typing import Any

from loraplex_server.metrics import MAX_ADAPTER_LABELS, Metrics

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
INFO_LABELS = ["version", "architecture", "quantization", "device", "base_fingerprint"]


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    registry = Metrics().registry
    collectors: Any = registry._collector_to_names  # prometheus_client shows label names nowhere else
    labels_of = {each._name: list(getattr(each, "_labelnames", ())) for each in collectors}
    labels_of["loraplex_build"] = INFO_LABELS
    metrics = {family.name: (family.type, labels_of[family.name]) for family in registry.collect()}

    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `loraplex_")]
    documented = {
        name.strip(" `"): (kind.strip(), [label.strip(" `") for label in labels.split(",") if label.strip()])
        for name, kind, labels, _ in rows
    }

    assert documented == metrics


def test_the_bound_of_the_labels_is_the_documented_one() -> None:
    assert f"first {MAX_ADAPTER_LABELS} names" in PAGE
