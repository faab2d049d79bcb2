"""Answers that teach nothing: short and meaningless ones. Short alone is no fault: "7 天内可退。" is an answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Literal

from loraplex_trainer.data.row import Row
from loraplex_trainer.data.text import match_key

_REFUSAL = re.compile(
    r"(?i)^(?:i'?m sorry,? but |sorry,? but |unfortunately,? )?"
    r"(?:as an ai(?: language model)?\b|i'?m just an ai"
    r"|i (?:can(?:no|')t|am unable to|am not able to) (?:help|assist|answer|provide|do|fulfil|comply))"
    r"|^(?:抱歉|对不起|很抱歉)?[，,]?(?:作为(?:一个)?(?:AI|人工智能)|我(?:无法|不能)(?:回答|提供|帮助|协助))"
)
_FUNCTION_WORDS = frozenset(
    "a an the and or but so of to in on at for with is are was were be been am do does did it its this that these "
    "those i you he she we they me him her us them my your his their our as if then than there here just very too "
    "also well oh".split()
)
_FUNCTION_CHARACTERS = frozenset("的了吗呢吧啊呀哦嗯哈嘛哎唉喔噢么")


@cache
def _stock() -> frozenset[str]:
    text = (files("loraplex_trainer.data") / "stock_phrases.txt").read_text(encoding="utf-8")
    return frozenset(match_key(line) for line in text.splitlines() if line and not line.startswith("#"))


@dataclass
class QualityResult:
    """Rows that remain; candidates are the short ones that were looked at."""

    rows: list[Row]
    candidates: int = 0
    dropped_by_reason: Counter[str] = field(default_factory=Counter)
    dropped: list[Row] = field(default_factory=list)
    kept_short: list[Row] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)  # of `dropped`, in its order


def filter_rows(
    rows: Sequence[Row], min_chars: int, mode: Literal["meaningless", "strict", "off"]
) -> QualityResult:
    """Meaningless: drop what is short and says nothing. Strict: drop all that is shorter than `min_chars`."""
    result = QualityResult([])
    for row in rows:
        if mode == "off" or len(row.completion) >= min_chars:
            result.rows.append(row)
            continue
        result.candidates += 1
        reason = "short" if mode == "strict" else meaningless(row)
        if reason is None:
            result.rows.append(row)
            result.kept_short.append(row)
        else:
            result.dropped_by_reason[reason] += 1
            result.dropped.append(row)
            result.reasons.append(reason)
    return result


def meaningless(row: Row) -> str | None:
    """Why an answer teaches nothing; None where it does. An answer that the source has a grader for always does."""
    if row.grader is not None:
        return None
    answer = row.completion
    key = match_key(answer)
    if not key:
        return "only punctuation"
    if key in _stock() or _made_of_stock(answer):
        return "stock phrase"
    if key == match_key(row.question):
        return "repeats the question"
    if _is_repetition(key):
        return "repetition"
    if _REFUSAL.search(answer.strip()):
        return "refusal boilerplate"
    if not _has_content(answer):
        return "no content word"
    return None


def _made_of_stock(answer: str) -> bool:
    parts = [match_key(part) for part in re.split(r"[，。！？、；,.!?;~\uff5e…\s]+", answer)]
    parts = [part for part in parts if part]
    return len(parts) > 1 and all(part in _stock() for part in parts)


def _is_repetition(key: str) -> bool:
    """One short unit three times or more, with perhaps a part of it at the end: 好的好的好的, hahaha, aaaa."""
    for size in range(1, len(key) // 3 + 1):
        unit = key[:size]
        if not any(c.isdigit() for c in unit) and key == (unit * (len(key) // size + 1))[: len(key)]:
            return True
    return False


def _has_content(answer: str) -> bool:
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+", answer)
    for word in words:
        if word.isascii():
            if word.lower() not in _FUNCTION_WORDS or (len(words) == 1 and len(word) == 1 and word.isupper()):
                return True  # a single capital letter is a choice
        elif any(c not in _FUNCTION_CHARACTERS for c in word):
            return True
    return False
