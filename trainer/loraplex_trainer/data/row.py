"""The canonical row: what every reader gives and every later step of the data build takes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One trained answer and the conversation before it.

    prompt    at least one message, the last one of the user; a system turn of the source is dropped, since the
              recipe's is put first when the row is rendered
    origin    where it was read, e.g. "faq.csv, line 12" or "terms.pdf, page 3, offset 210"; no path of the machine
    evidence  for a row made from a document: the chunk that holds the answer word for word
    """

    prompt: tuple[Message, ...]
    completion: str
    source: str  # file name
    origin: str
    tier: int | None = None  # 1 basic, 2 advanced, 3 expert
    stage: str = "domain"  # "general" for what is mixed in
    grader: dict[str, Any] | None = (
        None  # {"grader", "expected", "choices"?}, where the source says how to judge
    )
    parent: str | None = None  # id of the row that this one was augmented from
    cluster: str | None = None  # rows that may not be split between training and validation
    evidence: str | None = None

    @property
    def id(self) -> str:
        """Hash of what is trained, 16 hex digits: equal for equal conversations, wherever they were read."""
        content = json.dumps([list(self.prompt), self.completion], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def question(self) -> str:
        """The last message of the user."""
        return self.prompt[-1]["content"]
