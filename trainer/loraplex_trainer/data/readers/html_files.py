"""A stored web page → a document: its article, without menus and comments. Nothing is fetched."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loraplex_trainer.data.conversation import BadRecordError
from loraplex_trainer.data.documents import Document, Page
from loraplex_trainer.data.readers.decoding import file_bytes
from loraplex_trainer.data.text import normalized


def html_document(path: Path) -> Document:
    """Raises BadRecordError for a page without text."""
    import trafilatura
    from trafilatura.settings import use_config

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    content = file_bytes(path)
    config = use_config()
    # Of a page below its 250 characters the library would give menu and all, without structure.
    config.set("DEFAULT", "MIN_EXTRACTED_SIZE", "20")
    config.set("DEFAULT", "MIN_OUTPUT_SIZE", "1")
    found: Any = trafilatura.bare_extraction(
        content, include_comments=False, favor_recall=True, with_metadata=True, config=config
    )
    blocks = [block for block in map(normalized, _blocks(found.body)) if block] if found is not None else []
    if not blocks:
        raise BadRecordError(
            "no text was found in the web page; a page that a script fills must be saved as shown"
        )
    title = normalized(found.title or "") or path.stem
    return Document(path.name, title, (Page(None, "\n\n".join(blocks)),))


def _blocks(body: Any) -> Iterator[str]:
    """Text of paragraphs, items and rows in order; a heading begins with #, so that it is known as one."""
    for element in body:
        if element.tag == "head":
            yield "# " + _line(element)
        elif element.tag in ("list", "table", "div"):
            rows = [child for child in element if child.tag in ("item", "row")]
            if rows:
                yield "\n".join(line for line in map(_row, rows) if line)
            else:
                yield from _blocks(element) if len(element) else iter((_line(element),))
        else:
            yield _line(element)


def _row(element: Any) -> str:
    cells = [child for child in element if child.tag == "cell"]
    return " | ".join(map(_line, cells)) if cells else "- " + _line(element)


def _line(element: Any) -> str:
    return " ".join("".join(element.itertext()).split())
