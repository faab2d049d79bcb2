"""`python -m benchmarks.churn --shape` serves a base of random weights, and what it says happened did. No timings."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stdout
from typing import Any

import pytest

from benchmarks import churn
from benchmarks.shapes import SHAPES

NUM_NEWCOMERS = 10
TINY = {
    **SHAPES["llama-3.1-8b"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 400,
    "eos_token_id": 2,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    arguments = ["--json", "--shape", "tiny", "--rank", "8", "--source", "folder", "--num-threads", "1"]
    arguments += [
        "--rounds",
        "1",
        "--adapters-per-round",
        str(NUM_NEWCOMERS),
        "--tokens",
        "100",
        "--visit-prompt",
        "8",
        "40",
    ]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setitem(SHAPES, "tiny", TINY)
        assert churn.main(arguments) == 0
    document: dict[str, Any] = json.loads(printed.getvalue().splitlines()[-1])
    return document


def test_every_newcomer_pushes_another_out_of_its_slot(report: dict[str, Any]) -> None:
    """Three of them have room beside the streams' adapters."""
    assert report["adapters"] == NUM_NEWCOMERS
    assert report["evictions"] >= NUM_NEWCOMERS - 3


def test_adapters_on_disk_alone_are_asked_for_their_first_token(report: dict[str, Any]) -> None:
    assert [row["prompt_tokens"] for row in report["first_tokens"]] == [8, 40]
    for row in report["first_tokens"]:
        assert row["cold_visits"] >= 4
        assert row["warm_first_token_ms"] > 0
        assert row["cold_first_token_ms"] > 0


def test_cold_and_warm_first_tokens_differ_in_the_load_alone(report: dict[str, Any]) -> None:
    """No prompt of either is in the prefix cache, as a prompt that is asked again is."""
    for row in report["first_tokens"]:
        assert row["cold_parts_ms"]["adapter"] > 0
        assert row["warm_parts_ms"]["adapter"] == 0
        assert row["num_cached_tokens"] == {
            "cold": 0,
            "warm": 0,
            "repeated": 32 if row["prompt_tokens"] == 40 else 0,
        }


def test_the_times_between_tokens_are_compared(report: dict[str, Any]) -> None:
    assert math.isfinite(report["itl_p99_ratio"])
    assert report["itl_p99_ratio"] > 0
    assert report["shape"] == "tiny"
    assert report["source"] == "folder"
