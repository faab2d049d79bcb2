from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from loraplex_trainer.judge.evaluate import Evaluation, GradedAnswer, SuiteResult
from loraplex_trainer.judge.report import write_domain_report
from loraplex_trainer.judge.statistics import paired_change, share
from loraplex_trainer.train.run_folder import RunFolder


def evaluation(**changes: Any) -> Evaluation:
    base, adapter = [0.0] * 10, [1.0] * 9 + [0.0]
    found = share(base, 0.95), share(adapter, 0.95), paired_change(base, adapter, 0.95)
    answers = tuple(
        GradedAnswer(str(n), "Who <b>asks</b>?", "Me.", "?", "I & I", 0.0, value, True, ())
        for n, value in enumerate(adapter)
    )
    fields: dict[str, Any] = {
        "name": "finance",
        "precision": "bf16",
        "confidence": 0.95,
        "domain_base": found[0],
        "domain_adapter": found[1],
        "domain_change": found[2],
        "general_base": found[1],
        "general_adapter": found[1],
        "general_change": paired_change(adapter, adapter, 0.95),
        "suites": (SuiteResult("mini-mmlu", *found),),
        "perplexity_base": 20.0,
        "perplexity_adapter": 21.0,
        "leak_other_domains": {"education": share(base, 0.95)},
        "eos_rate": 1.0,
        "bad_rate": 0.0,
        "seconds": 3.0,
        "answers": answers,
    }
    return Evaluation(**{**fields, **changes})


@pytest.fixture
def written(run: RunFolder, tmp_path: Path) -> Path:
    write_domain_report(
        tmp_path / "reports",
        run,
        evaluation(),
        "qlora",
        package_digest="d" * 64,
        device="NVIDIA H200",
        other_precisions=[evaluation(precision="nf4")],
    )
    return tmp_path / "reports"


def test_the_document_has_every_figure_with_interval_and_number_of_questions(
    written: Path, run: RunFolder
) -> None:
    document = json.loads((written / "qlora.json").read_text())
    training = json.loads(run.report.read_text())

    for field in ("domain_base", "domain_adapter", "general_base", "general_adapter"):
        assert document[field].keys() == {"value", "low", "high", "n"}
    assert document["leak_other_domains"]["education"]["value"] == 0.0
    assert document["peak_memory_bytes"] == training["peak_memory_bytes"] > 0
    assert document["planned_memory_bytes"] == training["planned_memory_bytes"]
    assert document["tokens_per_second"] == training["tokens_per_s"]
    assert document["training_seconds"] == training["seconds"]
    assert document["versions"].keys() >= {"torch", "transformers", "peft", "trl"}
    assert (document["device"], document["method"], document["precision"]) == ("NVIDIA H200", "qlora", "bf16")
    assert document["other_precisions"]["nf4"]["domain_adapter"] == document["domain_adapter"]
    assert document["recipe_sha256"] == training["recipe_sha256"]


def test_the_page_needs_nothing_else_and_escapes_what_models_said(written: Path) -> None:
    page = (written / "qlora.html").read_text()

    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "Who &lt;b&gt;asks&lt;/b&gt;?" in page
    assert "I &amp; I" in page
    assert "90.0 % (59.6 to 98.2, n=10)" in page
    assert "<svg" in page
