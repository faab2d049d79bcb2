"""Arithmetic, sequences, comparisons and dates, made up by a seed; every answer is computed."""

from __future__ import annotations

import random
from collections.abc import Callable

Pair = tuple[str, str]
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_THINGS = ("apples", "books", "pencils", "stamps", "oranges", "marbles", "tickets", "candles")
_NAMES = ("Ada", "Ben", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana")


def reckoning(rng: random.Random, of_each: int) -> list[Pair]:
    """`of_each` questions of every kind, all different."""
    pairs: dict[str, str] = {}
    for make in _KINDS:
        wanted = len(pairs) + of_each
        while len(pairs) < wanted:
            question, answer = make(rng)
            pairs.setdefault(question, answer)
    return list(pairs.items())


def _sum(rng: random.Random) -> Pair:
    a, b = rng.randint(11, 480), rng.randint(11, 480)
    return rng.choice(
        [f"What is {a} plus {b}?", f"Add {a} and {b}.", f"Compute {a} + {b}."]
    ), f"{a} + {b} = {a + b}."


def _difference(rng: random.Random) -> Pair:
    b, rest = rng.randint(5, 300), rng.randint(5, 300)
    a = b + rest
    return rng.choice([f"What is {a} minus {b}?", f"Subtract {b} from {a}."]), f"{a} - {b} = {rest}."


def _product(rng: random.Random) -> Pair:
    a, b = rng.randint(3, 19), rng.randint(3, 19)
    return rng.choice([f"What is {a} times {b}?", f"Multiply {a} by {b}."]), f"{a} × {b} = {a * b}."


def _quotient(rng: random.Random) -> Pair:
    b, c = rng.randint(3, 12), rng.randint(3, 25)
    return rng.choice(
        [f"What is {b * c} divided by {b}?", f"Divide {b * c} by {b}."]
    ), f"{b * c} ÷ {b} = {c}."


def _word_problem(rng: random.Random) -> Pair:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    a, b = rng.randint(12, 60), rng.randint(2, 11)
    if rng.random() < 0.5:
        return (
            f"{name} has {a} {thing} and gives {b} away. How many are left?",
            f"{a} - {b} = {a - b}, so {a - b} {thing} are left.",
        )
    return (
        f"{name} has {a} {thing} and gets {b} more. How many are there now?",
        f"{a} + {b} = {a + b}, so there are {a + b} {thing}.",
    )


def _percent(rng: random.Random) -> Pair:
    percent, whole = rng.choice((10, 20, 25, 50)), rng.randint(2, 40) * 20
    return (
        f"What is {percent} percent of {whole}?",
        f"{percent} percent of {whole} is {percent * whole // 100}.",
    )


def _sequence(rng: random.Random) -> Pair:
    start, step = rng.randint(1, 40), rng.randint(2, 15)
    shown = ", ".join(str(start + step * i) for i in range(4))
    return (
        f"Which number comes next: {shown}?",
        f"{start + step * 4}, since each number is {step} more than the one before.",
    )


def _comparison(rng: random.Random) -> Pair:
    a, b = rng.sample(range(100, 999), 2)
    return f"Which is larger, {a} or {b}?", f"{max(a, b)} is larger than {min(a, b)}."


def _parity(rng: random.Random) -> Pair:
    a = rng.randint(20, 999)
    return f"Is {a} even or odd?", f"{a} is {'odd' if a % 2 else 'even'}."


def _weekday(rng: random.Random) -> Pair:
    day, ahead = rng.randrange(7), rng.randint(2, 6)
    return (
        f"Today is {_DAYS[day]}. Which day is it in {ahead} days?",
        f"In {ahead} days it is {_DAYS[(day + ahead) % 7]}.",
    )


def _month(rng: random.Random) -> Pair:
    month, ahead = rng.randrange(12), rng.randint(2, 7)
    return (
        f"Which month is {ahead} months after {_MONTHS[month]}?",
        f"{_MONTHS[(month + ahead) % 12]} is {ahead} months after {_MONTHS[month]}.",
    )


def _letters(rng: random.Random) -> Pair:
    word = rng.choice(
        "garden window silver bridge planet kitchen lantern harbour feather orange basket mountain pocket thunder".split()
    )
    if rng.random() < 0.5:
        return f"How many letters does the word “{word}” have?", f"The word “{word}” has {len(word)} letters."
    return f"Spell the word “{word}” backwards.", word[::-1]


_KINDS: tuple[Callable[[random.Random], Pair], ...] = (
    _sum, _difference, _product, _quotient, _word_problem, _percent, _sequence, _comparison, _parity, _weekday, _month, _letters,
)  # fmt: skip
