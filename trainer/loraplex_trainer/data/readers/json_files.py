"""JSON Lines, or JSON with a list of objects → records with their lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loraplex_trainer.data.conversation import BadRecordError, Rejected
from loraplex_trainer.data.readers.decoding import file_text

_LISTS = ("data", "rows", "examples", "train", "items")


def json_records(path: Path) -> Iterator[tuple[str, Any] | Rejected]:
    """(origin, record) of each object; Rejected for a line that is not JSON.

    Raises BadRecordError where the file as a whole cannot be read.
    """
    text = file_text(path)
    if (whole := _whole(text)) is not None:
        for number, record in enumerate(whole, start=1):
            yield f"{path.name}, record {number}", record
        return
    for number, line in enumerate(
        text.split("\n"), start=1
    ):  # not splitlines: U+2028 may stand in a JSON string
        if not line.strip():
            continue
        try:
            yield f"{path.name}, line {number}", json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            yield Rejected(f"{path.name}, line {number}", "not JSON")


def _whole(text: str) -> list[Any] | None:
    """The records of a document that is not JSON Lines."""
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        return None
    try:
        document = json.loads(text)
    except RecursionError:
        raise BadRecordError("the JSON is nested too deeply") from None
    except json.JSONDecodeError:
        if start == "[":
            raise BadRecordError("the file is not valid JSON") from None
        return None
    if isinstance(document, list):
        return document
    for name in _LISTS:
        if isinstance(document.get(name), list):
            return list(document[name])
    return [document]
