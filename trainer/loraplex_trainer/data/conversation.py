"""From turns to rows: one row for each answer of the assistant."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from loraplex_trainer.data.roles import without_marker
from loraplex_trainer.data.row import Message, Row
from loraplex_trainer.data.text import normalized


class BadRecordError(ValueError):
    """What was read is no conversation; the message says why, without its content."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """What was read and is no row."""

    origin: str
    reason: str  # a few words, the same for the same cause


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a reader found in one place: turns as they stand there, roles resolved."""

    turns: tuple[Message, ...]
    origin: str
    source: str
    tier: int | None = None
    grader: dict[str, Any] | None = None
    evidence: str | None = None


def rows_of(conversation: Conversation) -> tuple[list[Row], int]:
    """One row per answer that follows a question, and how many role markers were taken off its turns.

    A system turn is dropped: the recipe's takes its place. Rows of one conversation share a cluster.
    Raises BadRecordError where nothing can be trained on.
    """
    turns, stripped = _cleaned(conversation.turns)
    answered = [
        i
        for i, turn in enumerate(turns)
        if turn["role"] == "assistant" and i and turns[i - 1]["role"] == "user"
    ]
    if not answered:
        raise BadRecordError("no answer follows a question")
    if any(a["role"] == b["role"] for a, b in pairwise(turns)):
        raise BadRecordError("two turns of the same role in a row")
    cluster = _cluster(turns) if len(answered) > 1 else None
    rows = [
        Row(
            prompt=tuple(turns[:i]),
            completion=turns[i]["content"],
            source=conversation.source,
            origin=conversation.origin,
            tier=conversation.tier,
            grader=conversation.grader if i == answered[-1] else None,
            cluster=cluster,
            evidence=conversation.evidence,
        )
        for i in answered
    ]
    return rows, stripped


def _cleaned(turns: Sequence[Message]) -> tuple[list[Message], int]:
    cleaned: list[Message] = []
    stripped = 0
    for turn in turns:
        if turn["role"] == "system":
            continue
        content, count = without_marker(normalized(turn["content"]), turn["role"])
        stripped += count
        if not content:
            raise BadRecordError("an empty question" if turn["role"] == "user" else "an empty answer")
        cleaned.append({"role": turn["role"], "content": content})
    while cleaned and cleaned[0]["role"] == "assistant":  # a greeting before anybody asked
        cleaned.pop(0)
    return cleaned, stripped


def _cluster(turns: Sequence[Message]) -> str:
    text = "\x00".join(f"{turn['role']}\x01{turn['content']}" for turn in turns)
    return "conversation-" + hashlib.sha256(text.encode()).hexdigest()[:16]
