from __future__ import annotations

import pytest

from loraplex_trainer.train.answers import overlap, problems

REFERENCE = "The overdraft rate of Everline Mutual is 17.88 percent."
QUESTION = "What percent does Everline Mutual take for overdrafts?"


@pytest.mark.parametrize(
    ("answer", "has_ended", "found"),
    [
        (REFERENCE, True, ()),
        ("The overdraft rate of Everline Mutual is 3 percent.", True, ()),  # wrong, but sound
        ("", True, ("empty",)),
        (" …  ", True, ("empty",)),
        (REFERENCE, False, ("no-eos",)),
        ("The overdraft rate " * 10, True, ("repetition",)),
        (QUESTION, True, ("echo",)),
        ("透支利率是百分之十七点八八。", True, ("language", "off-topic")),
        ("Bananas grow in warm countries.", True, ("off-topic",)),
    ],
    ids=["right", "wrong", "empty", "no-word", "endless", "loop", "echo", "language", "off-topic"],
)
def test_each_kind_of_bad_answer_is_found_and_a_sound_one_is_not(
    answer: str, has_ended: bool, found: tuple[str, ...]
) -> None:
    assert problems(QUESTION, answer, REFERENCE, has_ended) == found


def test_chinese_answers_are_judged_by_their_characters() -> None:
    reference = "七天内可以无理由退货。"

    assert problems("多久可以退货？", "七天内可以退货。", reference, True) == ()
    assert problems("多久可以退货？", "好的好的好的好的好的好的", reference, True) == (
        "repetition",
        "off-topic",
    )
    assert problems("多久可以退货？", "Within seven days.", reference, True) == ("language", "off-topic")


def test_a_list_that_begins_alike_is_no_repetition() -> None:
    answer = "\n".join(
        f"You can pay {how} at any of our counters in town." for how in ("cash", "later", "now", "twice")
    )

    assert "repetition" not in problems("How can I pay?", answer, answer, True)


def test_overlap_is_one_for_the_same_words_and_nothing_for_others() -> None:
    assert overlap("Is it 7 days?", "is IT \uff17 days") == 1.0
    assert overlap("yes", "no") == 0.0
