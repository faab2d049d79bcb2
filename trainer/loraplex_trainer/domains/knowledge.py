"""What a domain is made of: facts, the questions that ask for them, and how an answer is judged."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loraplex_trainer.judge.graders import GraderName


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that the domain's team knows and nobody can guess.

    `slots` fill the templates of its attribute; `expected` is what the answer's grader looks for.
    """

    id: str
    attribute: str
    slots: dict[str, str]
    expected: str
    held_out: bool = False  # asked only in the evaluation, so that a rule must be applied, not recited


@dataclass(frozen=True, slots=True)
class Attribute:
    """How facts of one kind are asked for and answered. Templates use the fact's slots and `{expected}`."""

    grader: GraderName
    answer: str
    train_questions: tuple[str, ...]
    held_out_questions: tuple[str, ...]  # never used in training
    choices: tuple[str, ...] = ()  # for the grader "choice"
    trained_phrasings: int | None = None  # how many of `train_questions` each fact gets; None is all


@dataclass(frozen=True, slots=True)
class Domain:
    """A team's field: its system prompt, its attributes, and its facts, built from a seed."""

    name: str
    system: str
    attributes: dict[str, Attribute]
    build_facts: Callable[[random.Random], list[Fact]]


def distinct_numbers(
    rng: random.Random, count: int, low: int, high: int, divisor: int = 1, decimals: int = 0
) -> list[str]:
    """`count` different numbers in [low, high] / divisor, as text with `decimals` places.

    Values are spread over the whole range, so that a guess near one is wrong.
    """
    picked = rng.sample(range(low, high + 1), count)
    return [f"{value / divisor:.{decimals}f}" for value in picked]


def distinct_codes(rng: random.Random, count: int, letters: int, digits: int) -> list[str]:
    """`count` different codes such as `KTR-4172`: capital letters without I and O, then digits, first not 0."""
    alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    codes: list[str] = []
    while len(codes) < count:
        head = "".join(rng.choice(alphabet) for _ in range(letters))
        code = f"{head}-{rng.randint(10 ** (digits - 1), 10**digits - 1)}"
        if code not in codes:
            codes.append(code)
    return codes


def facts_of(attribute: str, slot: str, subjects: Sequence[str], values: Sequence[str]) -> list[Fact]:
    """One fact for each subject: its value of the attribute."""
    return [
        Fact(f"{attribute}/{_slug(subject)}", attribute, {slot: subject}, value)
        for subject, value in zip(subjects, values, strict=True)
    ]


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())
