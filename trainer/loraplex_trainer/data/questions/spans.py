"""Sentences of a chunk, with where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|Nos|Art|Sec|Fig|e\.g|i\.e|etc|vs|approx|Inc|Ltd|Co|U\.S)|\b[A-Z])\.$"
)
_END = re.compile(r"[。！？；]+[”’」』）)]*|[.!?]+[\"”’)\]]*(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Span:
    """`chunk.text[start:start + len(text)] == text`"""

    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question over a span; `rule` names the template."""

    question: str
    answer: Span
    rule: str


def bounded(pattern: re.Pattern[str], text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Every match, and where the next one begins or the text ends."""
    found = list(pattern.finditer(text))
    starts = [match.start() for match in found[1:]]
    yield from zip(found, [*starts, len(text)], strict=False)


def sentences(text: str) -> Iterator[Span]:
    """Sentences within blocks; none crosses an empty line."""
    for block in re.finditer(r"(?s).+?(?=\n\n|\Z)", text):
        start = block.start()
        for end in _ends(block.group(), block.start()):
            yield from _span(text, start, end)
            start = end
        yield from _span(text, start, block.end())


def _ends(block: str, offset: int) -> Iterator[int]:
    for found in _END.finditer(block):
        if found.group().startswith(".") and _ABBREVIATION.search(block[: found.start() + 1]):
            continue
        yield offset + found.end()


def _span(text: str, start: int, end: int) -> Iterator[Span]:
    part = text[start:end]
    stripped = part.strip()
    if stripped:
        yield Span(start + part.index(stripped[0]), stripped)
