"""YAML → conversations: lists of turns as chatterbot has them, or records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from loraplex_trainer.data.conversation import BadRecordError, Conversation, Rejected
from loraplex_trainer.data.readers.decoding import file_text
from loraplex_trainer.data.readers.records import conversation_of
from loraplex_trainer.data.row import Message

_LISTS = ("conversations", "data", "rows", "messages", "faq", "questions")


def yaml_conversations(path: Path) -> Iterator[Conversation | Rejected]:
    """Every conversation of the file. Raises BadRecordError where it is not YAML.

    All scalars are read as text: an answer "No" is not a boolean.
    """
    try:
        # Composed first, for the lines of the items.
        root = yaml.compose(file_text(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise BadRecordError(f"not valid YAML{f' at line {mark.line + 1}' if mark else ''}") from None
    for node in _items(root):
        origin = f"{path.name}, line {node.start_mark.line + 1}"
        try:
            yield _conversation(_value(node), origin, path.name)
        except BadRecordError as error:
            yield Rejected(origin, str(error))


def _items(root: Any) -> Sequence[Any]:
    if isinstance(root, yaml.MappingNode):
        named = {key.value: value for key, value in root.value}
        root = next((named[name] for name in _LISTS if name in named), root)
    if not isinstance(root, yaml.SequenceNode):
        raise BadRecordError("the YAML has no list of conversations")
    return list(root.value)


def _value(node: Any) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(child) for child in node.value]
    return {_value(key): _value(child) for key, child in node.value}


def _conversation(item: Any, origin: str, source: str) -> Conversation:
    if isinstance(item, Mapping):
        return conversation_of(item, origin, source)
    if not isinstance(item, list) or len(item) < 2:
        raise BadRecordError("not a list of at least two turns")
    if not all(isinstance(turn, str) for turn in item):
        raise BadRecordError("a turn is not text")
    turns: list[Message] = [
        {"role": "assistant" if position % 2 else "user", "content": turn}
        for position, turn in enumerate(item)
    ]
    return Conversation(tuple(turns), origin, source)
