"""Plain text with role markers (问：/答：, Q:/A:, 用户：/助手：, User:/Assistant:) → conversations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from loraplex_trainer.data.conversation import Conversation, Rejected
from loraplex_trainer.data.questions.spans import bounded
from loraplex_trainer.data.roles import LINE_MARKER, begins_conversation, marker_role
from loraplex_trainer.data.row import Message

_RULE = re.compile(r"(?m)^\s*(?:-{3,}|={3,}|\*{3,}|#{3,})\s*$")


@dataclass
class _Open:
    """The conversation that is being read."""

    line: int
    turns: list[Message] = field(default_factory=list)


def dialogue_conversations(
    text: str, source: str, where: str | None = None
) -> Iterator[Conversation | Rejected]:
    """Every conversation of a text with markers.

    A question marker (问, Q) begins a new one, as does a rule (---), and a user's turn after an empty line.
    `where` replaces the line number in the origin.
    """
    current: _Open | None = None
    for start, end, word, content_start in _marked(text):
        role, content = marker_role(word), text[content_start:end]
        line = text.count("\n", 0, start) + 1
        parts = _RULE.split(content, maxsplit=1)
        if current is None or _begins(role, word, text[:start], current):
            if current is not None:
                yield _closed(current, source, where)
            current = _Open(line)
        if current.turns and current.turns[-1]["role"] == role:
            current.turns[-1] = {
                "role": role,
                "content": current.turns[-1]["content"] + "\n" + parts[0].strip(),
            }
        else:
            current.turns.append({"role": role, "content": parts[0].strip()})
        if len(parts) > 1:
            yield _closed(current, source, where)
            current = None
    if current is not None:
        yield _closed(current, source, where)


def _marked(text: str) -> Iterator[tuple[int, int, str, int]]:
    """(start, end, marker, start of what is said) of every turn."""
    for marker, end in bounded(LINE_MARKER, text):
        yield marker.start(), end, marker.group(1), marker.end()


def _begins(role: str, word: str, before: str, current: _Open) -> bool:
    has_answer = any(turn["role"] == "assistant" for turn in current.turns)
    if role == "system":
        return bool(current.turns)
    return role == "user" and (begins_conversation(word) or (has_answer and before.endswith("\n\n")))


def _closed(current: _Open, source: str, where: str | None) -> Conversation | Rejected:
    origin = where or f"{source}, line {current.line}"
    roles = [turn["role"] for turn in current.turns]
    if "assistant" not in roles:
        return Rejected(origin, "a question without an answer")
    if "user" not in roles:
        return Rejected(origin, "an answer without a question")
    return Conversation(tuple(current.turns), origin, source)
