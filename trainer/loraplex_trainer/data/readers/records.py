"""Objects of JSON, YAML and tables → conversations: Alpaca, ShareGPT, messages, prompt/completion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loraplex_trainer.data.conversation import BadRecordError, Conversation
from loraplex_trainer.data.roles import role_of
from loraplex_trainer.data.row import Message
from loraplex_trainer.judge.graders import fault_of

Record = Mapping[str, Any]

_QUESTIONS = ("question", "prompt", "instruction", "query", "input", "问题", "问", "提问", "q")
_ANSWERS = ("answer", "completion", "output", "response", "答案", "答", "回答", "a")
_TIERS = {
    "basic": 1,
    "easy": 1,
    "基础": 1,
    "advanced": 2,
    "medium": 2,
    "进阶": 2,
    "expert": 3,
    "hard": 3,
    "专家": 3,
}


def record_format(record: Record) -> str | None:
    """Name of the format that a record is in; None: none that is known."""
    keys = _folded(record)
    if "conversations" in keys or ("conversation" in keys and isinstance(keys["conversation"], list)):
        return "sharegpt"
    if "messages" in keys:
        return "messages"
    if "instruction" in keys and ("output" in keys or "response" in keys):
        return "alpaca"
    if _first(keys, _QUESTIONS) is not None and _first(keys, _ANSWERS) is not None:
        return "prompt-completion"
    return None


def conversation_of(record: Any, origin: str, source: str, format: str = "auto") -> Conversation:
    """The conversation that a record holds. Raises BadRecordError with the reason."""
    if not isinstance(record, Mapping):
        raise BadRecordError("not an object with named fields")
    kind = record_format(record) if format == "auto" else format
    if kind is None:
        raise BadRecordError("no field of question and answer, messages or conversations")
    turns = _TURNS[kind](_folded(record))
    return Conversation(
        turns=tuple(turns), origin=origin, source=source, tier=tier_of(record), grader=grader_of(record)
    )


def tier_of(record: Record) -> int | None:
    """1 to 3; None where the record does not say. Raises BadRecordError for another value."""
    value = record.get("tier", record.get("难度"))
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().casefold() in _TIERS:
        return _TIERS[value.strip().casefold()]
    try:
        tier = int(value)
    except (TypeError, ValueError):
        tier = 0
    if tier not in (1, 2, 3):
        raise BadRecordError("tier is none of 1, 2, 3, basic, advanced, expert")
    return tier


def grader_of(record: Record) -> dict[str, Any] | None:
    """How the row's answer is judged, where the record says so. Raises BadRecordError for one that cannot be judged."""
    name, expected = record.get("grader"), record.get("expected")
    if not name or expected is None or expected == "":
        return None
    grader: dict[str, Any] = {"grader": str(name), "expected": str(expected)}
    if choices := record.get("choices"):
        grader["choices"] = _choices(choices)
    fault = fault_of(grader)
    if fault is not None:
        raise BadRecordError(fault)
    return grader


def _choices(value: Any) -> list[str]:
    """A list, or one written as JSON in a table."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        return [str(choice) for choice in found]
    except (TypeError, ValueError):
        raise BadRecordError("choices is not a list of texts") from None


def _alpaca(record: Record) -> list[Message]:
    turns: list[Message] = []
    for pair in record.get("history") or ():
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise BadRecordError("history is not made of pairs")
        turns += [_turn("user", pair[0]), _turn("assistant", pair[1])]
    question = _text(record.get("instruction"), "instruction")
    if extra := record.get("input"):
        question = f"{question}\n\n{_text(extra, 'input')}"
    return [*turns, _turn("user", question), _turn("assistant", record.get("output", record.get("response")))]


def _sharegpt(record: Record) -> list[Message]:
    return _named_turns(
        record.get("conversations", record.get("conversation")), ("from", "role"), ("value", "content")
    )


def _messages(record: Record) -> list[Message]:
    return _named_turns(record.get("messages"), ("role", "from"), ("content", "value"))


def _prompt_completion(record: Record) -> list[Message]:
    question, answer = _first(record, _QUESTIONS), _first(record, _ANSWERS)
    if question is None or answer is None:
        raise BadRecordError("no field of question and answer")
    return [*_side(question, "user"), *_side(answer, "assistant")]


_TURNS: dict[str, Callable[[Record], list[Message]]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "prompt-completion": _prompt_completion,
}


def _side(value: Any, role: str) -> list[Message]:
    """Prompt or completion: a text, or messages (in a table perhaps as JSON)."""
    if isinstance(value, str) and value.lstrip().startswith('[{"'):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return [_turn(role, value)]
    if isinstance(value, str | int | float):
        return [_turn(role, value)]
    turns = _named_turns(value, ("role", "from"), ("content", "value"))
    if role == "assistant" and [turn["role"] for turn in turns] != ["assistant"]:
        raise BadRecordError("the completion is not one message of the assistant")
    return turns


def _named_turns(value: Any, roles: Sequence[str], contents: Sequence[str]) -> list[Message]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise BadRecordError("the messages are not a list") from None
    if not isinstance(value, Sequence) or not value:
        raise BadRecordError("the messages are not a list, or empty")
    turns = []
    for item in value:
        if not isinstance(item, Mapping):
            raise BadRecordError("a message is not an object")
        name, content = _first(item, roles), _first(item, contents)
        role = role_of(str(name)) if name is not None else None
        if role is None:
            raise BadRecordError("a role is none of system, user, assistant")
        turns.append(_turn(role, content))
    return turns


def _turn(role: Any, content: Any) -> Message:
    return {"role": role, "content": _text(content, "message")}


def _text(value: Any, what: str) -> str:
    """A text, a number, or the text parts of a multi-part message."""
    if isinstance(value, bool) or value is None:
        raise BadRecordError(f"{what} is not text")
    if isinstance(value, str | int | float):
        return str(value)
    if (
        isinstance(value, Sequence)
        and value
        and all(isinstance(p, Mapping) and p.get("type") == "text" for p in value)
    ):
        return "\n".join(str(part.get("text", "")) for part in value)
    raise BadRecordError(f"{what} is not text")


def _folded(record: Record) -> dict[str, Any]:
    return {str(key).strip().casefold(): value for key, value in record.items()}


def _first(record: Record, names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)
