"""`python -m benchmarks.cpu --json --quick` runs, and its last line says everything that it promises. No timings."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
RATIOS = (
    "mixed_vs_peft_8",
    "mixed_vs_peft_32",
    "single_vs_transformers",
    "int8_vs_bf16_8",
    "int8_bytes_ratio",
    "served_vs_engine_32",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.cpu", "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def test_the_last_line_holds_every_ratio_as_a_positive_number(report: dict[str, Any]) -> None:
    for name in RATIOS:
        assert math.isfinite(report[name])
        assert report[name] > 0


def test_int8_takes_about_half_of_bf16s_bytes(report: dict[str, Any]) -> None:
    assert 0.45 < report["int8_bytes_ratio"] < 0.6


def test_our_int8_engine_and_peft_in_fp32_mostly_agree_on_the_first_token(report: dict[str, Any]) -> None:
    """So that what is compared in speed is the same model with the same adapters."""
    assert report["first_tokens_as_peft_32"] >= 0.6


def test_raw_figures_and_circumstances_stand_beside_the_ratios(report: dict[str, Any]) -> None:
    for subjects in report["raw"].values():
        assert len(subjects) >= 2
        for figures in subjects.values():
            assert figures["total_tokens_per_s"]["median"] > 0
    environment = report["environment"]
    assert environment["cores"] >= 1
    assert {"torch", "transformers", "peft", "loraplex"} <= set(environment["versions"])
    assert all(subject.get("threads", 1) >= 1 for subject in report["subjects"].values())
