"""Decontamination: what is asked at the end is not trained on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from loraplex_trainer.data.near import NearIndex
from loraplex_trainer.data.row import Row
from loraplex_trainer.data.text import match_key, normalized
from loraplex_trainer.train.tokens import read_eval_rows

_LABEL = re.compile(r"^\s*[A-Za-z][\w ]{0,20}:\s*")
_MIN_LINE_KEY = 10  # characters of a suite's line that identify it
_MIN_NEAR_KEY = 12


@dataclass
class HeldOut:
    """Questions that are asked at the end."""

    questions: list[str] = field(default_factory=list)
    lines: set[str] = field(default_factory=set)  # match keys of the lines of suites
    names: list[str] = field(default_factory=list)  # file or suite names, for the report
    missing: list[str] = field(default_factory=list)  # suites whose questions are not here


def read_held_out(domain: Path | None, suites: Sequence[str]) -> HeldOut:
    """Questions of the recipe's eval file and of the shipped suites that it names.

    Raises TrainingDataError naming the line of the eval file that could not be judged by, before anything is trained.
    """
    found = HeldOut()
    if domain is not None:
        found.questions += [normalized(row["question"]) for row in read_eval_rows(domain)]
        found.names.append(domain.name)
    for name in suites:
        suite = files("loraplex_trainer.judge") / "suites" / f"{name}.jsonl"
        if name.startswith("lm-eval:") or not suite.is_file():
            found.missing.append(name)
            continue
        items = [json.loads(line) for line in suite.read_text(encoding="utf-8").splitlines() if line.strip()]
        found.lines |= suite_keys(items)
        found.names.append(name)
    return found


def suite_keys(items: Iterable[dict[str, Any]]) -> set[str]:
    """Match keys of the lines that make a suite's items what they are, without instructions that many items share."""
    lines: Counter[str] = Counter()
    for item in items:
        text = str(item.get("context") or item.get("question") or "")
        lines.update({key for key in _line_keys(text) if len(key) >= _MIN_LINE_KEY})
    return {key for key, count in lines.items() if count <= 3}


def _line_keys(text: str) -> list[str]:
    return [match_key(_LABEL.sub("", line)) for line in text.splitlines()]


@dataclass
class Decontaminated:
    """Rows that remain, and how many went."""

    rows: list[Row]
    exact: int = 0
    near: int = 0


def decontaminate(rows: Sequence[Row], held_out: HeldOut, near: float | None) -> Decontaminated:
    """Drop rows that ask a held-out question: in the same words, or with `near` in nearly the same."""
    result = Decontaminated([])
    keys = {match_key(question) for question in held_out.questions}
    index = NearIndex(held_out.questions, near) if near is not None and held_out.questions else None
    for row in rows:
        key = match_key(row.question)
        if key in keys or (held_out.lines and not held_out.lines.isdisjoint(_line_keys(row.question))):
            result.exact += 1
        elif index is not None and len(key) >= _MIN_NEAR_KEY and index.like(row.question):
            result.near += 1
        else:
            result.rows.append(row)
    return result
