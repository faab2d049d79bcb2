"""General conversations mixed in, so that an adapter does not forget everything else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from loraplex_trainer.data.conversation import BadRecordError, rows_of
from loraplex_trainer.data.held_out import HeldOut, decontaminate
from loraplex_trainer.data.lint import lint_rows
from loraplex_trainer.data.pii import clean_rows
from loraplex_trainer.data.readers.sources import read_file
from loraplex_trainer.data.row import Row
from loraplex_trainer.errors import TrainingDataError
from loraplex_trainer.recipe.sections import GeneralSection, SourceSection

STAGE = "general"


def num_general(num_train: int, share: float) -> int:
    """Rows to mix in so that they are `share` of the final mix."""
    return round(share / (1 - share) * num_train)


def general_rows(section: GeneralSection, folder: Path, held_out: HeldOut, taken: set[str]) -> list[Row]:
    """All rows that may be drawn from, sorted by id: cleaned, none of them held out or in the domain's rows (`taken`).

    Raises TrainingDataError where there is none.
    """
    if section.path is None:
        return []
    if section.path == "bundled":
        with as_file(files("loraplex_trainer.data") / "general.jsonl") as path:
            rows = _read(path)
    else:
        rows = _read(folder / section.path)
    rows = clean_rows(lint_rows(rows, "fix").rows, "mask").rows
    rows = decontaminate(rows, held_out, near=None).rows
    unique = {row.id: row for row in rows if row.id not in taken}
    if not unique:
        raise TrainingDataError("data.general: no usable conversation is left in the file")
    return [replace(unique[key], stage=STAGE, cluster=None, tier=None, grader=None) for key in sorted(unique)]


def mixed_in(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows drawn by the seed: each once before any is drawn again."""
    rng = random.Random(f"general/{seed}")
    drawn: list[Row] = []
    while rows and len(drawn) < count:
        drawn += rng.sample(rows, k=min(len(rows), count - len(drawn)))
    return drawn


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        raise TrainingDataError(f"data.general.path: no file is named {path.name!r} in the recipe's folder")
    read = read_file(SourceSection(path=path.name), path)
    if read.unreadable is not None:
        raise TrainingDataError(f"data.general.path: {path.name}: {read.unreadable}")
    rows = []
    for conversation in read.conversations:
        try:
            rows += rows_of(conversation)[0]
        except BadRecordError:
            continue
    return rows
