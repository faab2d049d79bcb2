"""CSV and Parquet → records with their lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loraplex_trainer.data.conversation import BadRecordError, Rejected
from loraplex_trainer.data.readers.decoding import file_text

_BATCH_ROWS = 1024


def csv_records(path: Path) -> Iterator[tuple[str, Any] | Rejected]:
    """(origin, record) of each line under the header; the separator is found out.

    Raises BadRecordError where there is no header.
    """
    text = file_text(path)
    csv.field_size_limit(16 * 2**20)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    try:
        header = [name.strip() for name in next(reader)]
    except (StopIteration, csv.Error):
        raise BadRecordError("the table is empty") from None
    line = reader.line_num + 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield Rejected(f"{path.name}, line {line}", "not a line of the table")
            line = reader.line_num + 1
            continue
        origin, line = f"{path.name}, line {line}", reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            yield Rejected(origin, "more cells than the header names")
            continue
        yield origin, dict(zip(header, cells, strict=False))


def _delimiter(text: str) -> str:
    """That which the header has most of."""
    header = text.partition("\n")[0]
    return max(",;\t|", key=header.count)


def parquet_records(path: Path) -> Iterator[tuple[str, Any] | Rejected]:
    """(origin, record) of each row. Raises BadRecordError where it is not Parquet."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(_BATCH_ROWS):
            for record in batch.to_pylist():
                number += 1
                yield f"{path.name}, row {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise BadRecordError("the file is not valid Parquet") from error
