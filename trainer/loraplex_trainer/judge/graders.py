"""Judges a completion against the known answer. Strict: a completion that lists many answers is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Literal, NotRequired, TypedDict

GraderName = Literal["number", "contains", "choice", "exact"]
MAX_WORDS = 40  # a longer completion is no answer, whatever it contains

_NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
_WORD = re.compile(r"\w+(?:[-:.,]\w+)*")


class EvalRow(TypedDict):
    """One held-out question, as a line of eval.jsonl."""

    id: str
    system: str
    question: str
    answer: str  # a full sentence that passes the grader
    grader: GraderName
    expected: str
    choices: NotRequired[list[str]]  # for the grader "choice": every answer the domain knows


def grade(row: EvalRow, completion: str) -> bool:
    """Whether the completion answers the row's question.

    number    every number that the question did not mention equals `expected`
    contains  `expected` stands in the completion as a whole word, in any case, and every other word with a
              digit in it comes from the question
    choice    `expected`, and no other of the row's choices, stands in the completion
    exact     nothing but `expected`, up to case, spaces and a final full stop
    """
    if len(completion.split()) > MAX_WORDS:
        return False
    expected = row["expected"]
    match row["grader"]:
        case "number":
            answered = _numbers(completion) - _numbers(row["question"])
            return answered == {Decimal(expected)}
        case "contains":
            others = _coded_words(completion) - _coded_words(row["question"]) - _coded_words(expected)
            return _mentions(completion, expected) and not others
        case "choice":
            mentioned = {choice for choice in row.get("choices", []) if _mentions(completion, choice)}
            return mentioned == {expected}
        case "exact":
            return _normalized(completion) == _normalized(expected)


def share_right(graded: Iterable[bool]) -> float:
    """Accuracy in [0, 1]; 0 of nothing is 0."""
    results = list(graded)
    return sum(results) / len(results) if results else 0.0


def _numbers(text: str) -> set[Decimal]:
    return {Decimal(match.replace(",", "")) for match in _NUMBER.findall(text)}


def _coded_words(text: str) -> set[str]:
    """Words that hold a digit: codes, rooms, times, amounts."""
    return {word for word in _WORD.findall(text.casefold()) if any(c.isdigit() for c in word)}


def _mentions(text: str, phrase: str) -> bool:
    pattern = rf"(?<!\w){re.escape(_normalized(phrase))}(?!\w)"
    return re.search(pattern, _normalized(text)) is not None


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")
