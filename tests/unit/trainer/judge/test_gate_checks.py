"""What the gate concludes from what was measured; nothing is asked of a model here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from loraplex_trainer.judge.evaluate import GradedAnswer
from loraplex_trainer.judge.gate_checks import (
    PARITY,
    Position,
    drop_check,
    ending_check,
    gain_check,
    parity_check,
    privacy_check,
    quality_check,
    unchanged_check,
)
from loraplex_trainer.judge.statistics import paired_change
from loraplex_trainer.recipe.sections import GateSection

GATE = GateSection()


def answer(text: str = "Red.", number: int = 0, **changes: Any) -> GradedAnswer:
    fields: dict[str, Any] = {
        "id": f"q/{number}",
        "question": "What is red?",
        "reference": "Red.",
        "base": "?",
        "adapter": text,
        "base_score": 0.0,
        "adapter_score": 1.0,
        "has_ended": True,
        "problems": (),
    }
    return GradedAnswer(**{**fields, **changes})


def position(engine: float, trainer: float, best: float | None = None) -> Position:
    return Position({7: engine}, {7: trainer}, 7, trainer if best is None else best)


def scores(right: int, of: int) -> Sequence[float]:
    return [1.0] * right + [0.0] * (of - right)


def test_logits_that_agree_within_the_precisions_tolerance_pass() -> None:
    assert parity_check([[position(-1.0, -1.00005)]], "fp32").verdict == "pass"
    assert parity_check([[position(-1.0, -1.1)]], "int8").verdict == "pass"


@pytest.mark.parametrize("precision", sorted(PARITY))
def test_logits_of_another_model_fail_in_every_precision(precision: Any) -> None:
    check = parity_check([[position(-1.0, -4.0)], [position(-1.0, -1.0)]], precision)

    assert check.verdict == "fail"
    assert check.measured["largest"] == pytest.approx(3.0)
    assert "template" in check.message


def test_a_small_difference_everywhere_fails_by_its_mean() -> None:
    assert parity_check([[position(-1.0, -1.0005)] * 8], "fp32").verdict == "fail"


def test_a_first_token_that_the_trainer_would_not_choose_fails_though_its_logits_agree() -> None:
    tie = parity_check([[position(-1.0, -1.0, best=-0.9999)]], "fp32")
    other = parity_check([[position(-1.0, -1.0, best=-0.5)]], "fp32")

    assert (tie.verdict, other.verdict) == ("pass", "fail")
    assert other.measured["other_first_tokens"] == 1


def test_what_is_next_to_impossible_counts_in_fp32_alone() -> None:
    unlikely = Position({7: -0.01, 8: -12.0}, {7: -0.01, 8: -15.0}, 7, -0.01)

    assert parity_check([[unlikely]], "int8").verdict == "pass"
    assert parity_check([[unlikely]], "fp32").verdict == "fail"


def test_nothing_compared_is_no_agreement() -> None:
    assert parity_check([], "fp32").verdict == "fail"


def test_another_adapter_whose_answers_moved_fails_by_name() -> None:
    check = unchanged_check({"the base": 0.0, "finance": 0.2}, "fp32")

    assert check.verdict == "fail"
    assert "finance" in check.message
    assert unchanged_check({"the base": 1e-5}, "fp32").verdict == "pass"


@pytest.mark.parametrize(
    ("base", "adapter", "verdict"), [(10, 90, "pass"), (50, 40, "fail"), (50, 54, "inconclusive")]
)
def test_the_domain_gain_is_judged_by_its_interval(base: int, adapter: int, verdict: str) -> None:
    check = gain_check(paired_change(scores(base, 100), scores(adapter, 100), 0.95), GATE)

    assert check.verdict == verdict
    assert "100 questions" in check.message
    assert check.measured["n"] == 100


def test_a_recipe_may_ask_for_a_larger_gain() -> None:
    change = paired_change(scores(10, 100), scores(60, 100), 0.95)

    assert gain_check(change, GATE).verdict == "pass"
    assert gain_check(change, GateSection(min_domain_gain=70)).verdict == "fail"


@pytest.mark.parametrize(("adapter", "verdict"), [(340, "pass"), (300, "fail"), (332, "inconclusive")])
def test_the_general_drop_is_judged_by_its_interval(adapter: int, verdict: str) -> None:
    check = drop_check(paired_change(scores(340, 427), scores(adapter, 427), 0.95), GATE)

    assert check.verdict == verdict
    assert "allowed to lose 2" in check.message


def test_without_general_questions_nobody_knows_what_was_forgotten() -> None:
    check = drop_check(paired_change([], [], 0.95), GATE)

    assert check.verdict == "inconclusive"
    assert "eval.general" in check.message


def test_answers_must_end_by_themselves() -> None:
    ended = [answer(number=n, has_ended=n > 0) for n in range(20)]

    assert ending_check(ended, GATE).verdict == "pass"
    assert ending_check(ended[:10], GATE).verdict == "fail"
    assert ending_check([], GATE).verdict == "inconclusive"


def test_bad_answers_are_counted_and_named_by_their_kind() -> None:
    bad = [answer(number=n, problems=("repetition",) if n < 2 else ()) for n in range(20)]

    assert quality_check(bad, GATE).verdict == "pass"
    worse = quality_check(bad[:10], GATE)
    assert worse.verdict == "fail"
    assert "(repetition)" in worse.message


@pytest.mark.parametrize("text", ["Call 13812345678.", "Write to ann@example.com."])
def test_personal_data_in_an_answer_fails_and_is_not_repeated(text: str) -> None:
    check = privacy_check([answer(), answer(text, 1)])

    assert check.verdict == "fail"
    assert list(check.measured["answers"]) == ["q/1"]
    assert "13812345678" not in str(check)
    assert "ann@example.com" not in str(check)


def test_answers_without_personal_data_pass() -> None:
    assert privacy_check([answer("Aldermoor Bank charges 1.71 dollars.")]).verdict == "pass"
