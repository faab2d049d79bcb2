"""PDF → a document, page by page. Text only: pages that are pictures are reported, not read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from loraplex_trainer.data.conversation import BadRecordError, Rejected
from loraplex_trainer.data.documents import Document, page_of

_MIN_CHARS = 8  # of a page that has text


def pdf_document(path: Path) -> tuple[Document, list[Rejected]]:
    """The document, and its pages without text.

    Raises BadRecordError for a file that is encrypted, broken, or has no text at all.
    """
    import pypdf
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what is wrong with the file is said here, once
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise BadRecordError("the PDF is protected by a password; save it without one")
        texts = [(number, _text(page)) for number, page in enumerate(reader.pages, start=1)]
        title = _title(reader)
    except (PyPdfError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, BadRecordError):
            raise
        # pypdf raises all of these for broken files.
        raise BadRecordError("the PDF is broken; open it in a viewer and save it again") from error
    pages = tuple(page_of(number, text) for number, text in texts if len(text.strip()) >= _MIN_CHARS)
    if not pages:
        raise BadRecordError(
            "the PDF has no text, its pages are pictures: run text recognition (OCR) over it first"
        )
    empty = [
        Rejected(f"{path.name}, page {number}", "a page without text; if it is a scan, run OCR over it")
        for number, text in texts
        if len(text.strip()) < _MIN_CHARS
    ]
    return Document(path.name, title or path.stem, pages), empty


def _text(page: Any) -> str:
    return str(page.extract_text() or "")


def _title(reader: Any) -> str:
    title = reader.metadata.title if reader.metadata else None
    return (
        str(title).strip() if title and str(title).strip().casefold() not in ("untitled", "anonymous") else ""
    )
