"""Stand-in until the data build is merged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex_trainer.data.row import Row


@dataclass(frozen=True)
class BuiltData:
    """Rows ready to train on."""

    folder: Path
    train: tuple[Row, ...]
    val: tuple[Row, ...]
    sha256: str
    report: Any
    warnings: tuple[str, ...]


def load_built(folder: Path) -> BuiltData:
    """Read back."""
    content = json.loads((folder / "report.json").read_text())
    train, val = (
        tuple(Row(**{**row, "prompt": tuple(row["prompt"])}) for row in content[name])
        for name in ("train", "val")
    )
    return BuiltData(folder, train, val, content["sha256"], {}, ())
