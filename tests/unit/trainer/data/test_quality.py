"""D07: a short answer goes only if it also says nothing; strict mode drops every short one."""

from __future__ import annotations

import pytest

from loraplex_trainer.data.quality import filter_rows, meaningless
from tests.unit.trainer.data.support import row


@pytest.mark.parametrize(
    "answer",
    [
        "7 天内可退。",
        "是的。",
        "Yes.",
        "No",
        "B",
        "北京",
        "42",
        "3.5 kg",
        "Room A168.",
        "Ottawa",
        "不可以",
        "¥12",
        "C. Rome",
    ],
)
def test_d07_a_short_answer_that_says_something_stays(answer: str) -> None:
    assert meaningless(row("What is it?", answer)) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("好的好的好的", "repetition"),
        ("哈哈哈哈", "repetition"),
        ("好的。", "stock phrase"),
        ("好的，谢谢！", "stock phrase"),
        ("I don't know.", "stock phrase"),
        ("OK", "stock phrase"),
        ("……", "only punctuation"),
        ("???", "only punctuation"),
        ("What is it?", "repeats the question"),
        ("what is it", "repeats the question"),
        ("As an AI language model, I cannot do this.", "refusal boilerplate"),
        ("I'm sorry, but I can't help with that.", "refusal boilerplate"),
        ("作为一个AI语言模型，我没有意见", "refusal boilerplate"),
        ("抱歉，我无法回答", "refusal boilerplate"),
        ("it is", "no content word"),
        ("嗯嘛", "no content word"),
    ],
)
def test_d07_a_short_answer_that_says_nothing_goes_with_its_reason(answer: str, reason: str) -> None:
    result = filter_rows([row("What is it?", answer)], 50, "meaningless")

    assert result.rows == []
    assert result.dropped_by_reason == {reason: 1}


def test_d07_strict_drops_both_and_off_keeps_both() -> None:
    rows = [row("能退吗？", "7 天内可退。"), row("能退吗？", "好的好的好的")]

    assert filter_rows(rows, 50, "meaningless").rows == rows[:1]
    assert filter_rows(rows, 50, "strict").rows == []
    assert filter_rows(rows, 50, "off").rows == rows


def test_d07_a_long_answer_is_no_candidate_and_a_graded_one_always_says_something() -> None:
    rows = [row("Why?", "ok " * 30), row("Why?", "ok", grader={"grader": "exact", "expected": "ok"})]

    result = filter_rows(rows, 50, "meaningless")

    assert result.rows == rows
    assert result.candidates == 1
