"""Judges a completion against the known answer. Strict: a completion that lists many answers is wrong.

Two graders measure closeness instead of deciding: character F1 and ROUGE-L. Both are fit for Chinese, Japanese and
Korean, where no spaces part the words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NotRequired, TypedDict

GraderName = Literal["number", "contains", "choice", "exact", "char_f1", "rouge_l"]
GRADERS: tuple[GraderName, ...] = ("number", "contains", "choice", "exact", "char_f1", "rouge_l")
MAX_WORDS = 40  # a longer completion is no answer to a question that has one, whatever it contains
CLOSE_ENOUGH = 0.6  # of char_f1 and rouge_l, for an answer to count as right
_MAX_TOKENS = 512  # of a text that is compared; the rest is cut off

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
_LETTER = rf"[^\W{_CJK}]"  # of a script that parts its words by spaces; "费用是5元" holds the number 5
_NUMBER = re.compile(rf"(?<!{_LETTER})(?<![.,])\d+(?:,\d{{3}})*(?:\.\d+)?(?!{_LETTER})")
_WORD = re.compile(rf"{_LETTER}+(?:[-:.,]{_LETTER}+)*")
_UNIT = re.compile(rf"[{_CJK}]|{_LETTER}+")


class EvalRow(TypedDict):
    """One held-out question, as a line of eval.jsonl."""

    id: str
    system: str | None  # None: no system turn
    question: str
    answer: str  # a full sentence that passes the grader
    grader: GraderName
    expected: str
    choices: NotRequired[list[str]]  # for the grader "choice": every answer the domain knows
    pass_at: NotRequired[float]  # for char_f1 and rouge_l, in [0, 1]; left out: CLOSE_ENOUGH


def fault_of(judged: Mapping[str, Any]) -> str | None:
    """What is wrong with how a row is to be judged; None if nothing is."""
    grader, expected, choices = judged["grader"], judged["expected"], judged.get("choices", [])
    if grader not in GRADERS:
        return f"grader {grader!r} is none of {', '.join(GRADERS)}"
    if not isinstance(expected, str) or not expected.strip():
        return "expected is not a text"
    if grader == "number" and not _is_number(expected):
        return f"expected {expected!r} is not one plain number without a sign, as the grader number needs"
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        return "choices is not a list of texts"
    if grader == "choice" and expected not in choices:
        return f"expected {expected!r} is none of the choices"
    if not _is_share(judged.get("pass_at", CLOSE_ENOUGH)):
        return "pass_at is not a number from 0 to 1"
    return None


def grade(row: EvalRow, completion: str) -> bool:
    """Whether the completion answers the row's question.

    number    every number that the question did not mention equals `expected`
    contains  `expected` stands in the completion as a whole word, in any case, and every other word with a
              digit in it comes from the question
    choice    `expected`, and no other of the row's choices, stands in the completion; within a longer choice
              ("B" of "B minus") it does not count
    exact     nothing but `expected`, up to case, spaces and a final full stop
    char_f1, rouge_l  the score reaches `pass_at`

    Chinese, Japanese and Korean part no words, so there a phrase or number stands whole beside any character.
    """
    expected = row["expected"]
    if row["grader"] in ("char_f1", "rouge_l"):
        return score(row, completion) >= row.get("pass_at", CLOSE_ENOUGH)
    if len(completion.split()) > MAX_WORDS:
        return False
    match row["grader"]:
        case "number":
            answered = _numbers(completion) - _numbers(row["question"])
            return answered == {Decimal(expected)}
        case "contains":
            others = _coded_words(completion) - _coded_words(row["question"]) - _coded_words(expected)
            return _mentions(completion, expected) and not others
        case "choice":
            return _mentioned(completion, row.get("choices", [])) == {expected}
        case _:
            return _normalized(completion) == _normalized(expected)


def score(row: EvalRow, completion: str) -> float:
    """How good the completion is, in [0, 1]; 0 or 1 for the graders that decide."""
    match row["grader"]:
        case "char_f1":
            return char_f1(completion, row["expected"])
        case "rouge_l":
            return rouge_l(completion, row["expected"])
        case _:
            return float(grade(row, completion))


def char_f1(completion: str, expected: str) -> float:
    """F1 of the characters that both texts share, spaces and case apart, in [0, 1].

    >>> char_f1("七天内可退", "七天内可以退")
    0.9090909090909091
    """
    ours, theirs = (Counter("".join(text.casefold().split())) for text in (completion, expected))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(completion: str, expected: str) -> float:
    """F1 of the longest common subsequence, in [0, 1]: of words, and of single characters where a script has no words.

    >>> rouge_l("The fee is 3 dollars.", "The fee is 4 dollars.")
    0.8
    """
    ours, theirs = (_UNIT.findall(text.casefold())[:_MAX_TOKENS] for text in (completion, expected))
    return _f1(_common_length(ours, theirs), len(ours), len(theirs))


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if ours and theirs else 0.0


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for left in one:
        diagonal = 0
        for column, right in enumerate(other, start=1):
            above = lengths[column]
            lengths[column] = diagonal + 1 if left == right else max(above, lengths[column - 1])
            diagonal = above
    return lengths[-1]


def share_right(graded: Iterable[bool]) -> float:
    """Accuracy in [0, 1]; 0 of nothing is 0."""
    results = list(graded)
    return sum(results) / len(results) if results else 0.0


def _is_number(expected: str) -> bool:
    """Signs are no part of the numbers that are found in a completion: in "3-5 days" there is none."""
    try:
        return Decimal(expected).is_finite() and expected.strip()[0] not in "+-"
    except InvalidOperation:
        return False


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _numbers(text: str) -> set[Decimal]:
    return {Decimal(match.replace(",", "")) for match in _NUMBER.findall(text)}


def _coded_words(text: str) -> set[str]:
    """Words that hold a digit: codes, rooms, times, amounts."""
    return {word for word in _WORD.findall(text.casefold()) if any(c.isdigit() for c in word)}


def _mentions(text: str, phrase: str) -> bool:
    return re.search(_whole(phrase), _normalized(text)) is not None


def _mentioned(text: str, choices: Sequence[str]) -> set[str]:
    """Choices that stand in the text outside longer ones."""
    found, rest = set(), _normalized(text)
    for choice in sorted(choices, key=len, reverse=True):
        rest, count = re.subn(_whole(choice), "\x00", rest)
        if count:
            found.add(choice)
    return found


def _whole(phrase: str) -> str:
    return rf"(?<!{_LETTER}){re.escape(_normalized(phrase))}(?!{_LETTER})"


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").removesuffix("。")
