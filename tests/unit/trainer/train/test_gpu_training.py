"""On a GPU: the default base, a short run of each method, and the memory that was planned for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loraplex_server.base.resolve import resolve_base
from loraplex_trainer.data.row import Message, Row
from loraplex_trainer.recipe.document import parse_recipe
from loraplex_trainer.train.session import train

from .conftest import built

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
MAX_ERROR = 0.25
ROWS = [
    Row(
        (Message(role="user", content=f"What is the fee of the Granary Account number {number}?"),),
        f"The Granary Account number {number} costs {number * 7 % 50} dollars a month.",
        "rows.jsonl",
        f"line {number}",
    )
    for number in range(96)
]


@pytest.mark.parametrize(("method", "bits"), [("lora", 16), ("lora", 8), ("qlora", 4)])
def test_a_short_run_learns_within_the_planned_memory(tmp_path: Path, method: str, bits: int) -> None:
    content: dict[str, Any] = {
        "name": "granary",
        "system": "You are the banking assistant. Answer in one short sentence.",
        "data": {"sources": [{"path": "rows.jsonl"}], "max_length": 160},
        "method": method,
        "quant": {"bits": bits},
        "lora": {"rank": 8, "dropout": 0.0},
        "train": {"epochs": {"min": 2, "max": 2}, "effective_batch": 32, "learning_rate": 0.001},
        "samples": {"n": 4, "max_new_tokens": 32},
    }
    report = train(
        parse_recipe(content, "recipe"),
        tmp_path,
        tmp_path / "run",
        resolve_base(None),
        data=built(ROWS[:80], ROWS[80:]),
    )

    assert report.device == "cuda"
    assert report.best_perplexity is not None
    assert report.first_perplexity is not None
    assert report.best_perplexity < report.first_perplexity
    error = abs(report.peak_memory_bytes - report.planned_memory_bytes) / report.planned_memory_bytes
    assert error <= MAX_ERROR, (report.peak_memory_bytes, report.planned_memory_bytes)
