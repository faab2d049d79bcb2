from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_trainer.judge.graders import (
    GRADERS,
    MAX_WORDS,
    EvalRow,
    GraderName,
    char_f1,
    fault_of,
    grade,
    rouge_l,
    score,
    share_right,
)

_numbers = st.integers(0, 10**6)


def row(
    grader: GraderName, expected: str, question: str = "How many?", choices: list[str] | None = None
) -> EvalRow:
    built = EvalRow(
        id="t/1", system="s", question=question, answer=expected, grader=grader, expected=expected
    )
    if choices:
        built["choices"] = choices
    return built


@given(_numbers)
def test_a_number_is_found_with_and_without_separators_and_units(value: int) -> None:
    asked = row("number", str(value))

    for text in (f"It takes {value} days.", f"${value:,}", f"{value}.00 dollars", f"{value}%"):
        assert grade(asked, text)


@given(_numbers, _numbers)
def test_a_second_number_makes_the_answer_wrong(expected: int, other: int) -> None:
    assert grade(row("number", str(expected)), f"{expected} or {other}") == (expected == other)


@given(st.lists(_numbers, min_size=2, max_size=30, unique=True))
def test_a_list_of_numbers_never_passes(numbers: list[int]) -> None:
    assert not grade(row("number", str(numbers[0])), " ".join(map(str, numbers)))


def test_a_number_of_the_question_may_be_repeated() -> None:
    asked = row("number", "21", question="I scored 85 points. What is left?")

    assert grade(asked, "With 85 points, 21 are left.")
    assert not grade(asked, "With 85 points, 22 are left.")
    assert not grade(asked, "With 85 points.")


def test_digits_inside_a_code_are_no_number() -> None:
    assert not grade(row("number", "41"), "RX41")


def test_a_code_must_stand_whole_and_alone() -> None:
    asked = row("contains", "KT-412")

    assert grade(asked, "The code is kt-412.")
    assert not grade(asked, "The code is KT-4123.")
    assert not grade(asked, "KT-411, KT-412, KT-413")


def test_a_choice_counts_only_when_it_is_the_only_one() -> None:
    asked = row("choice", "Heron", choices=["Wren", "Heron", "Falcon"])

    assert grade(asked, "That is a Heron.")
    assert not grade(asked, "Wren, Heron or Falcon.")
    assert not grade(asked, "That is a Wren.")
    assert not grade(asked, "That is good.")


def test_exact_forgives_case_spaces_and_a_full_stop_only() -> None:
    asked = row("exact", "Blue Lagoon")

    assert grade(asked, " blue  lagoon. ")
    assert not grade(asked, "the blue lagoon")


@pytest.mark.parametrize("grader", ["number", "contains", "choice", "exact"])
def test_a_completion_that_rambles_is_wrong(grader: GraderName) -> None:
    asked = row(grader, "7", choices=["7", "8"])

    assert grade(asked, "7")
    assert not grade(asked, "7 " + "and so on " * MAX_WORDS)


@given(st.text(), st.sampled_from(["number", "contains", "choice", "exact"]))
def test_grading_never_fails_on_any_text(completion: str, grader: GraderName) -> None:
    assert grade(row(grader, "4172", choices=["4172"]), completion) in (True, False)


@given(st.lists(st.booleans()))
def test_the_share_right_is_a_share(graded: list[bool]) -> None:
    share = share_right(graded)

    assert 0 <= share <= 1
    assert share * len(graded) == pytest.approx(sum(graded))


@given(st.text(), st.sampled_from(["char_f1", "rouge_l"]))
def test_a_text_is_as_close_to_itself_as_can_be_and_a_score_is_a_share(text: str, grader: GraderName) -> None:
    asked = row(grader, "退货期为七天, seven days.")

    assert score(asked, asked["expected"]) == 1.0
    assert 0.0 <= score(asked, text) <= 1.0


@pytest.mark.parametrize("grader", ["char_f1", "rouge_l"])
def test_chinese_is_compared_character_by_character(grader: GraderName) -> None:
    asked = row(grader, "七天内可以退货")

    assert score(asked, "七天内可退货") == pytest.approx(12 / 13)
    assert score(asked, "不知道") == 0.0


def test_the_longest_common_subsequence_respects_the_order_of_words() -> None:
    assert rouge_l("one two three four", "one three four") == pytest.approx(2 * 3 / 7)
    assert rouge_l("three two one", "one two three") == pytest.approx(1 / 3)
    assert char_f1("three two one", "one two three") == 1.0


def test_a_close_answer_is_right_from_the_rows_own_limit_on() -> None:
    asked = row("rouge_l", "The fee is 3 dollars.")

    assert grade(asked, "The fee is 4 dollars.")
    asked["pass_at"] = 0.9
    assert not grade(asked, "The fee is 4 dollars.")
    assert score(asked, "The fee is 4 dollars.") == 0.8


@given(st.sampled_from(GRADERS))
def test_an_empty_answer_is_never_right(grader: GraderName) -> None:
    assert not grade(row(grader, "7", choices=["7", "8"]), "")


@pytest.mark.parametrize(
    ("grader", "expected", "right", "wrong"),
    [
        ("number", "5", "费用是5元。", "费用是6元。"),
        ("number", "1.71", "利率为1.71%", "利率为1.7%或1.71%"),
        ("contains", "A12", "房间是A12。", "房间是A123。"),
        ("contains", "七天", "七天内可退。", "十天内可退。"),
        ("exact", "七天", "七天。", "七天内。"),
    ],
)
def test_chinese_answers_without_spaces_are_judged_like_others(
    grader: GraderName, expected: str, right: str, wrong: str
) -> None:
    assert grade(row(grader, expected), right)
    assert not grade(row(grader, expected), wrong)


def test_a_choice_in_chinese_is_found_and_not_within_a_longer_one() -> None:
    choices = ["退款", "不退款"]

    assert grade(row("choice", "不退款", choices=choices), "本商品不退款。")
    assert not grade(row("choice", "退款", choices=choices), "本商品不退款。")
    assert not grade(row("choice", "退款", choices=choices), "退款或不退款。")


def test_a_choice_that_begins_like_another_is_the_only_one_named() -> None:
    choices = ["B", "B minus"]

    assert grade(row("choice", "B minus", choices=choices), "It is a B minus.")
    assert not grade(row("choice", "B", choices=choices), "It is a B minus.")


def test_a_number_with_a_sign_cannot_be_judged_and_is_refused() -> None:
    assert fault_of({"grader": "number", "expected": "-3"}) is not None
    assert fault_of({"grader": "number", "expected": "3"}) is None
