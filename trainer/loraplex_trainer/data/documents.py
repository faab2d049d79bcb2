"""Documents as pages of blocks, and the chunks that questions are built from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from loraplex_trainer.data.roles import LINE_MARKER
from loraplex_trainer.data.text import has_cjk, normalized

BlockKind = Literal["heading", "paragraph"]

_HEADING = re.compile(
    r"^(?:#{1,6}\s+\S|第[一二三四五六七八九十百千零〇\d]+[编章节]\b|第[一二三四五六七八九十百千零〇\d]+[编章节]\s"
    r"|(?:Chapter|Section|Article|Part)\s+[\dIVXLC]+\b[.:]?[^.!?]*$|\d{1,2}(?:\.\d{1,2}){0,3}\.?\s+[^\d\s].{0,78}[^.!?。！？；;,，:]$)"
)
_CLAUSE = re.compile(r"^第[一二三四五六七八九十百千零〇\d]+条")
_BULLET = re.compile(r"^(?:[-*•·]\s|\d{1,3}[.)、]\s|[（(][一二三四五六七八九十\d]+[)）]|[a-z][.)]\s)")
_ENDS_SENTENCE = re.compile(r"[.!?。！？；;:：…”\")）]$")


@dataclass(frozen=True, slots=True)
class Page:
    """Clean text of a page: blocks, with an empty line between two."""

    number: int | None  # from 1; None where the document has no pages
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """What a PDF, a web page or a text without markers says."""

    source: str  # file name
    title: str
    pages: tuple[Page, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Blocks of one page under one heading: `page.text[offset : offset + len(text)] == text`."""

    source: str
    title: str
    heading: str | None
    page: int | None
    offset: int  # characters from the begin of the page
    text: str

    @property
    def origin(self) -> str:
        """Where it stands, for people."""
        return self.at(0)

    def at(self, position: int) -> str:
        """Where a character of the chunk stands."""
        page = f"page {self.page}, " if self.page is not None else ""
        return f"{self.source}, {page}offset {self.offset + position}"


def page_of(number: int | None, raw: str) -> Page:
    """A page from text with hard line ends: lines of a paragraph are joined, headings and clauses stand alone."""
    blocks: list[str] = []
    for group in re.split(r"\n\s*\n", normalized(raw)):
        blocks += _joined(group.split("\n"))
    return Page(number, "\n\n".join(blocks))


def _joined(lines: list[str]) -> list[str]:
    blocks: list[str] = []
    ended = True
    width = max(map(len, lines), default=0)
    for line in (line.strip() for line in lines):
        if not line:
            continue
        starts = ended or any(pattern.match(line) for pattern in (_HEADING, _CLAUSE, _BULLET, LINE_MARKER))
        if starts or not blocks:
            blocks.append(line)
        else:
            blocks[-1] = _glued(blocks[-1], line)
        is_short = len(line) < width * 0.6 and _ENDS_SENTENCE.search(line) is not None
        ended = is_heading(line) or is_short
    return blocks


def _glued(before: str, after: str) -> str:
    if re.search(r"[a-z]-$", before) and after[:1].islower():
        return before[:-1] + after
    if (
        has_cjk(before[-1:])
        or has_cjk(after[:1])
        or before[-1:] in "，。；：、！？（《“"
        or after[:1] in "，。；：、！？）》”"
    ):
        return before + after
    return f"{before} {after}"


def is_heading(block: str) -> bool:
    """Whether a block names what follows it."""
    if "\n" in block or len(block) > 80 or _CLAUSE.match(block) or LINE_MARKER.match(block):
        return False
    if _HEADING.match(block):
        return True
    if has_cjk(block):
        return len(block) <= 24 and not re.search(r"[，。；：、！…,.;:]", block) and not _BULLET.match(block)
    words = block.split()
    return (
        1 <= len(words) <= 9
        and block[:1].isupper()
        and not re.search(r"[.!;:,…]$", block)
        and not _BULLET.match(block)
    )


def heading_text(block: str) -> str:
    """A heading without its number and marks."""
    text = re.sub(
        r"^(?:#{1,6}\s+|第[^\s]{1,8}[编章节]\s*|\d{1,2}(?:\.\d{1,2}){0,3}\.?\s+)", "", block
    ).strip()
    text = re.sub(r"^(?:Chapter|Section|Article|Part)\s+[\dIVXLC]+[.:\s-]*", "", text).strip()
    return text or block.strip("# ")


def chunks_of(document: Document, chunk_chars: int) -> Iterator[Chunk]:
    """Pages cut at headings, and after at most `chunk_chars` characters; a longer block is a chunk of its own."""
    heading: str | None = None
    for page in document.pages:
        start = end = 0
        for offset, block in _blocks(page.text):
            begins = is_heading(block)
            if end > start and (begins or offset + len(block) - start > chunk_chars):
                yield Chunk(
                    document.source, document.title, heading, page.number, start, page.text[start:end]
                )
                start = end = offset
            if begins:
                heading, start, end = heading_text(block), offset + len(block), offset + len(block)
            else:
                start = offset if end <= start else start
                end = offset + len(block)
        if end > start:
            yield Chunk(document.source, document.title, heading, page.number, start, page.text[start:end])


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    offset = 0
    for block in text.split("\n\n"):
        if block.strip():
            yield offset, block
        offset += len(block) + 2
