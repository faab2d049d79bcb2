"""Who speaks: the names that data sets give to roles, and the markers that stand before turns in plain text."""

from __future__ import annotations

import re

from loraplex_trainer.data.row import Role

_NAMES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer", "系统"), "system"),
    **dict.fromkeys(
        (
            "user",
            "human",
            "customer",
            "question",
            "q",
            "prompter",
            "client",
            "用户",
            "客户",
            "问",
            "提问",
            "问题",
        ),
        "user",
    ),
    **dict.fromkeys(
        (
            "assistant",
            "gpt",
            "ai",
            "bot",
            "chatgpt",
            "model",
            "answer",
            "a",
            "agent",
            "助手",
            "客服",
            "答",
            "回答",
        ),
        "assistant",
    ),
}
_WORDS: dict[Role, str] = {
    "user": "用户|客户|提问|问题|问|User|Human|Customer|Question|Q",
    "assistant": "助手|客服|回答|答案|答|Assistant|Agent|Chatbot|Bot|AI|Answer|A",
    "system": "系统|System",
}
_SINGLE_QUESTIONS = frozenset(
    {"问题", "提问", "问", "q", "question"}
)  # each begins a conversation of its own


def _marker(words: str, start: str) -> re.Pattern[str]:
    return re.compile(
        rf"{start}(?:\*\*|\[|【|<)?({words})\s*(\d{{0,4}})\s*(?:\*\*|\]|】|>)?\s*[:：]\s*(?:\*\*)?\s*",
        re.IGNORECASE,
    )


_LEADING = {role: _marker(words, r"\A\s*") for role, words in _WORDS.items()}
LINE_MARKER = _marker("|".join(_WORDS.values()), r"(?m)^[ \t]*(?:\d{1,4}[.、)]\s*)?")
"""A role marker at the begin of a line: group 1 is the word."""


def role_of(name: str) -> Role | None:
    """The role that a data set calls `name`; None: none of ours, e.g. a tool."""
    return _NAMES.get(name.strip().casefold())


def marker_role(word: str) -> Role:
    """The role of a word that LINE_MARKER found."""
    return next(role for role, words in _WORDS.items() if re.fullmatch(words, word, re.IGNORECASE))


def begins_conversation(word: str) -> bool:
    """Whether a marker is one of single questions (问, Q), as opposed to the turns of a dialogue (用户, User)."""
    return word.casefold() in _SINGLE_QUESTIONS


def without_marker(text: str, role: Role) -> tuple[str, int]:
    """The text without the role's own markers before it, and how many stood there (doubled ones go too)."""
    count = 0
    while (found := _LEADING[role].match(text)) and text[found.end() :].strip():
        text, count = text[found.end() :], count + 1
    return text, count


def has_turns(text: str) -> bool:
    """Whether a text holds a dialogue: marked lines of user and of assistant."""
    roles = {marker_role(found.group(1)) for found in LINE_MARKER.finditer(text)}
    return {"user", "assistant"} <= roles
