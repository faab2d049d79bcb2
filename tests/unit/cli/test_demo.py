from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from loraplex_cli.demo.batch_metrics import BatchMeans, BatchTotals, means_between, parse_batch_totals
from loraplex_cli.demo.burst import Burst, Question, StreamRecord, mixed_questions, percentile
from loraplex_cli.demo.questions import Domain, read_domains
from loraplex_cli.demo.report import Answer, DemoReport, demo_text
from loraplex_client.results import BaseModel, Limits, Load, ServerInfo
from loraplex_trainer.judge.graders import EvalRow


def row(index: int, expected: str = "7") -> EvalRow:
    return {
        "id": f"q{index}",
        "system": "s",
        "question": f"How many [{'abcdefgh'[index % 8]}]?",
        "answer": f"It is {expected}.",
        "grader": "number",
        "expected": expected,
    }


def domain(name: str, num_questions: int = 30) -> Domain:
    return Domain(name, Path(name), tuple(row(index) for index in range(num_questions)))


DOMAINS = [domain("ecommerce"), domain("education"), domain("finance")]


def report(answers: list[Answer], records: list[StreamRecord]) -> DemoReport:
    server = ServerInfo(
        "0",
        BaseModel("b", "L", "int8", "cpu", "f", 1, 1),
        Limits(1, 1, 1, 1, 1, 1, 1),
        Load(0, 0, 0, 0, 0, 0, 2**20),
        1.0,
    )
    return DemoReport(server, tuple(answers), Burst(tuple(records), 2.0), BatchMeans(4.0, 2.5))


def record(adapter: str, text: str, failure: str = "") -> StreamRecord:
    return StreamRecord(Question(adapter, row(0)), text, 4, 0.5, [0.1, 0.2], failure)


RIGHT = Answer("finance", row(0), "no idea", "It is 7.", True)
WRONG = Answer("finance", row(0), "no idea", "It is 8.", False)


def test_the_burst_goes_round_the_adapters_and_the_base_with_different_questions() -> None:
    questions = mixed_questions(DOMAINS, 48)

    assert len(questions) == 48
    assert [question.adapter for question in questions[:5]] == [
        "ecommerce",
        "education",
        "finance",
        "",
        "ecommerce",
    ]
    for name in ("ecommerce", "education", "finance"):
        asked = [question.row["id"] for question in questions if question.adapter == name]
        assert len(asked) == len(set(asked)) == 12


def test_a_domain_with_few_questions_asks_them_again() -> None:
    assert len(mixed_questions([domain("a", 1), domain("b", 2)], 20)) == 20


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(1, 100))
def test_a_percentile_is_a_value_that_enough_others_do_not_exceed(
    values: list[float], percent: float
) -> None:
    found = percentile(values, percent)

    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 * (1 - 1e-9)


def test_a_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))


def test_batch_means_come_from_the_servers_histograms() -> None:
    registry = CollectorRegistry()
    buckets = (0, 1, 2, 4, 8)
    adapters = Histogram("loraplex_batch_adapters", "a", buckets=buckets, registry=registry)
    sequences = Histogram("loraplex_batch_sequences", "s", buckets=buckets, registry=registry)
    adapters.observe(3)
    sequences.observe(8)
    before = parse_batch_totals(generate_latest(registry).decode())
    for num_adapters, num_sequences in ((0, 2), (2, 4), (3, 6)):
        adapters.observe(num_adapters)
        sequences.observe(num_sequences)
    after = parse_batch_totals(generate_latest(registry).decode())

    assert means_between(before, after) == BatchMeans(sequences=4.0, adapters=2.5)


def test_without_a_step_the_means_are_zero() -> None:
    totals = BatchTotals(1, 0, 2, 3)

    assert means_between(totals, totals) == BatchMeans(0.0, 0.0)


def test_a_good_run_has_no_problems() -> None:
    good = report([RIGHT], [record("finance", "It is 7."), record("", "who knows")])

    assert good.problems() == []
    assert good.document()["ok"] is True
    assert good.document()["burst"]["adapter_share_right"] == 1.0


@pytest.mark.parametrize(
    ("answers", "records", "problem"),
    [
        ([WRONG], [record("finance", "It is 7.")], "finance: the adapter's answer is wrong"),
        ([RIGHT], [record("finance", "It is 7."), record("", "", "DRAINING: x")], "1 of 2 streams failed"),
        ([RIGHT], [record("finance", "It is 8.")], "only 0%"),
    ],
)
def test_a_wrong_answer_or_a_failed_stream_is_a_problem(
    answers: list[Answer], records: list[StreamRecord], problem: str
) -> None:
    found = report(answers, records)

    assert any(problem in each for each in found.problems())
    assert found.document()["ok"] is False


def test_the_text_shows_both_answers_and_keeps_brackets() -> None:
    text = demo_text(report([RIGHT], [record("finance", "It is 7.")]))

    assert "no idea" in text
    assert "It is 7." in text
    assert "[a]" in text
    assert "4.0 sequences" in text


def test_domains_are_read_from_their_folders(tmp_path: Path) -> None:
    for name in ("ecommerce", "education", "finance"):
        (tmp_path / name / "package").mkdir(parents=True)
        (tmp_path / name / "package" / "adapter_model.safetensors").touch()
        (tmp_path / name / "eval.jsonl").write_text(json.dumps(row(0)) + "\n\n")

    assert [each.name for each in read_domains(tmp_path)] == ["ecommerce", "education", "finance"]
