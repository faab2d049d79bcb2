"""What format a file is in: by its name, else by how it begins."""

from __future__ import annotations

from pathlib import Path

from loraplex_trainer.data.conversation import BadRecordError

_BY_SUFFIX = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".txt": "text",
    ".md": "text",
    ".pdf": "pdf",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
}
RECORD_FORMATS = ("alpaca", "sharegpt", "messages", "prompt-completion")


def file_format(path: Path) -> str:
    """One of json, csv, parquet, yaml, text, pdf, html. Content that no text file begins with goes before the name.

    Raises BadRecordError where the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(2048)
    except OSError as error:
        raise BadRecordError(f"the file cannot be read: {error.strerror}") from error
    if begin.startswith(b"%PDF-"):
        return "pdf"
    if begin.startswith(b"PAR1"):
        return "parquet"
    known = _BY_SUFFIX.get(path.suffix.casefold())
    if known is not None:
        return known
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "html"
    return "json" if text.startswith((b"{", b"[{")) else "text"
