"""The sources of a recipe → conversations, documents, and what could not be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loraplex_trainer.data.conversation import BadRecordError, Conversation, Rejected
from loraplex_trainer.data.documents import Document, page_of
from loraplex_trainer.data.progress import Progress
from loraplex_trainer.data.readers.decoding import file_text
from loraplex_trainer.data.readers.dialogues import dialogue_conversations
from loraplex_trainer.data.readers.formats import RECORD_FORMATS, file_format
from loraplex_trainer.data.readers.html_files import html_document
from loraplex_trainer.data.readers.json_files import json_records
from loraplex_trainer.data.readers.pdf_files import pdf_document
from loraplex_trainer.data.readers.records import conversation_of, record_format
from loraplex_trainer.data.readers.tables import csv_records, parquet_records
from loraplex_trainer.data.readers.yaml_files import yaml_conversations
from loraplex_trainer.data.roles import has_turns
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.recipe.sections import SourceSection

Item = Conversation | Document | Rejected


@dataclass
class FileRead:
    """What one file gave."""

    file: str
    source: SourceSection
    format: str
    conversations: list[Conversation] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    unreadable: str | None = None  # why the file as a whole could not be read


def read_sources(sources: Sequence[SourceSection], folder: Path, progress: Progress) -> list[FileRead]:
    """All files of all sources, each once, in the order of their names within a source.

    Raises TrainingDataError where a source names no file.
    """
    files: list[tuple[SourceSection, Path]] = []
    seen: set[Path] = set()
    for source in sources:
        for path in source_files(source, folder):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                files.append((source, path))
    read = []
    for number, (source, path) in enumerate(files):
        progress("reading", number, len(files))
        read.append(read_file(source, path))
    progress("reading", len(files), len(files))
    return read


def source_files(source: SourceSection, folder: Path) -> list[Path]:
    """The files that a source's path or pattern names, sorted. Raises TrainingDataError where there is none."""
    path = folder / source.path
    if path.is_file():
        return [path]
    if path.is_dir():
        raise TrainingDataError(
            f"data.sources: {source.path!r} is a folder; name its files, e.g. {source.path}/*"
        )
    pattern = Path(source.path)
    root = Path(pattern.anchor) if pattern.is_absolute() else folder
    relative = pattern.relative_to(pattern.anchor) if pattern.is_absolute() else pattern
    found = sorted(match for match in root.glob(str(relative)) if match.is_file())
    if not found:
        raise TrainingDataError(
            f"data.sources: no file is named {source.path!r}, seen from the recipe's folder"
        )
    return found


def read_file(source: SourceSection, path: Path) -> FileRead:
    """One file; what is wrong with it is told in the result."""
    read = FileRead(path.name, source, source.format)
    try:
        kind = file_format(path) if source.format in ("auto", *RECORD_FORMATS) else source.format
        read.format = kind if source.format == "auto" else source.format
        for item in _items(path, kind, source.format if source.format in RECORD_FORMATS else "auto"):
            if isinstance(item, Conversation):
                read.conversations.append(item)
            elif isinstance(item, Document):
                read.documents.append(item)
            else:
                read.rejected.append(item)
    except BadRecordError as error:
        read.unreadable = str(error)
        read.rejected.append(Rejected(path.name, str(error)))
    return read


def _items(path: Path, kind: str, record_kind: str) -> Iterator[Item]:
    match kind:
        case "json":
            yield from _conversations(json_records(path), path.name, record_kind)
        case "csv":
            yield from _conversations(csv_records(path), path.name, record_kind)
        case "parquet":
            yield from _conversations(parquet_records(path), path.name, record_kind)
        case "yaml":
            yield from yaml_conversations(path)
        case "pdf":
            document, pages = pdf_document(path)
            yield document
            yield from pages
        case "html":
            yield html_document(path)
        case _:
            yield from _text_items(path)


def _conversations(
    records: Iterator[tuple[str, object] | Rejected], source: str, kind: str
) -> Iterator[Item]:
    for record in records:
        if isinstance(record, Rejected):
            yield record
            continue
        origin, content = record
        try:
            if (
                isinstance(content, dict)
                and kind == "auto"
                and record_format(content) is None
                and _is_text(content)
            ):
                yield from dialogue_conversations(content["text"], source, origin)
            else:
                yield conversation_of(content, origin, source, kind)
        except BadRecordError as error:
            yield Rejected(origin, str(error))


def _is_text(record: dict[str, object]) -> bool:
    """One text in which turns are marked, as some corpora store dialogues."""
    return isinstance(record.get("text"), str) and has_turns(str(record["text"]))


def _text_items(path: Path) -> Iterator[Item]:
    """A text with role markers is conversations; one without is a document."""
    text = file_text(path)
    if not text.strip():
        raise BadRecordError("the file is empty")
    if has_turns(text):
        yield from dialogue_conversations(text.replace("\r\n", "\n"), path.name)
    else:
        yield Document(path.name, path.stem, (page_of(None, text),))
