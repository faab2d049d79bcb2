"""A data build on disk: `rows.jsonl`, `report.json`, `report.md`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loraplex_trainer.data.report import DataReport
from loraplex_trainer.data.row import Row
from loraplex_trainer.errors import TrainingDataError

ROWS = "rows.jsonl"
REPORT = "report.json"
READABLE_REPORT = "report.md"


@dataclass(frozen=True, slots=True)
class BuiltData:
    """Rows ready for training."""

    folder: Path
    train: tuple[Row, ...]  # domain rows by id, then augmented ones, then general ones in the order drawn
    val: tuple[Row, ...]  # by id
    sha256: str  # hash of what is trained and validated on, hex
    report: DataReport
    warnings: tuple[str, ...]


def dataset_hash(train: Iterable[Row], val: Iterable[Row]) -> str:
    """The same for the same rows in the same parts, wherever they were read and in whatever order. Hex."""
    lines = sorted(
        json.dumps([part, row.id, row.tier, row.stage, row.grader], sort_keys=True, ensure_ascii=False)
        for part, rows in (("train", train), ("val", val))
        for row in rows
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def row_lines(train: Sequence[Row], val: Sequence[Row]) -> Iterable[str]:
    """Lines of rows.jsonl."""
    for part, rows in (("train", train), ("val", val)):
        for row in rows:
            document = {"split": part, "id": row.id, **asdict(row)}
            yield json.dumps(document, ensure_ascii=False) + "\n"


def load_built(folder: Path) -> BuiltData:
    """Read a build back. Raises TrainingDataError where files are missing or do not belong together."""
    try:
        report = DataReport.model_validate_json((folder / REPORT).read_bytes())
        rows = [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").split("\n") if line]
        parts: dict[str, list[Row]] = {"train": [], "val": []}
        for document in rows:
            parts[document.pop("split")].append(_row(document))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError, KeyError, TypeError) as error:
        raise TrainingDataError(
            f"{folder.name} is no whole data build; run `loraplex train data build` again"
        ) from error
    sha256 = dataset_hash(parts["train"], parts["val"])
    if sha256 != report.sha256:
        raise TrainingDataError(
            f"{folder.name}: rows.jsonl is not what report.json was written for; build the data again"
        )
    return BuiltData(
        folder, tuple(parts["train"]), tuple(parts["val"]), sha256, report, tuple(report.warnings)
    )


def _row(document: dict[str, Any]) -> Row:
    document.pop("id")
    document["prompt"] = tuple(document["prompt"])
    return Row(**document)
