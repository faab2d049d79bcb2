"""Every request as CSV or JSON lines, and latencies as HdrHistogram logs."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from loraplex_loadtest.figures.samples import Samples
from loraplex_loadtest.records import RequestRecord
from loraplex_loadtest.run import Outcome

_HIGHEST_US = 3_600_000_000
_SIGNIFICANT_DIGITS = 3


def write_requests(outcome: Outcome, file: Path) -> None:
    """One line for each request, in order of intended moments; CSV if the name ends so, else JSON lines."""
    rows = (_row(record) for record in outcome.recording.records)
    with file.open("w", encoding="utf-8", newline="") as stream:
        if file.suffix == ".csv":
            writer = csv.DictWriter(stream, [field.name for field in fields(RequestRecord)])
            writer.writeheader()
            writer.writerows(rows)
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


def write_hdr_log(samples: Samples, file: Path) -> None:
    """Interval log that HdrHistogram's tools read: one tagged histogram for each figure, in microseconds."""
    from hdrh.histogram import HdrHistogram
    from hdrh.log import HistogramLogWriter

    chosen = samples.is_measured
    columns = {
        "ttft": samples.ttft_s[chosen],
        "tpot": samples.tpot_s[chosen],
        "itl": samples.inter_token_s(chosen),
        "e2e": samples.e2e_s[chosen],
    }
    stream = io.StringIO()
    writer = HistogramLogWriter(stream)
    writer.output_comment("loraplex loadtest, values in microseconds")
    writer.output_log_format_version()
    writer.output_legend()
    for tag, seconds in columns.items():
        histogram = HdrHistogram(1, _HIGHEST_US, _SIGNIFICANT_DIGITS)
        values, counts = np.unique(
            np.clip(np.rint(seconds[~np.isnan(seconds)] * 1e6), 1, _HIGHEST_US).astype(np.int64),
            return_counts=True,
        )
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            histogram.record_value(value, count)
        stream.write(f"Tag={tag},")  # the writer knows no tags, its reader does
        writer.output_interval_histogram(histogram, 0, samples.window_s[1])
    file.write_text(stream.getvalue(), encoding="utf-8")


def _row(record: RequestRecord) -> dict[str, object]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in asdict(record).items()
    }
