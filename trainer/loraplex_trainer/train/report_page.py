"""The report as files: JSON, and one page that needs nothing else, no scripts, no fonts, no pictures of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from loraplex_trainer.train.curves import Curves, read_curves
from loraplex_trainer.train.plots import all_plots
from loraplex_trainer.train.report import TrainReport
from loraplex_trainer.train.run_folder import RunFolder, read_lines, write_json, write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1.5rem }
td, th { border-bottom: 1px solid #ddd; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top }
th { font-weight: 600 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem }
.plots svg { width: 100%; height: auto }
.bad { color: #a40000 }
pre { background: #f6f6f6; padding: 0.6rem; white-space: pre-wrap }
"""


def write_report(run: RunFolder, report: TrainReport) -> None:
    """Write report.json and report.html."""
    write_json(run.report, report.document())
    write_text(run.report_page, report_page(report, read_curves(run), read_lines(run.samples)))


def report_page(report: TrainReport, curves: Curves, samples: Sequence[dict[str, Any]]) -> str:
    """The whole HTML document. Text of data and models is escaped."""
    plots = "".join(f"<figure>{svg}</figure>" for _, svg in all_plots(curves))
    parts = [
        f"<h1>{escape(report.tenant)}/{escape(report.name)}: {report.status}</h1>",
        _table(None, _facts(report)),
        _warnings(report),
        f'<h2>Curves</h2><div class="plots">{plots}</div>' if plots else "",
        "<h2>Stages</h2>",
        _table(
            ("stage", "end", "rows", "validation", "steps", "epochs", "best epoch", "best loss", "alarms"),
            [
                (
                    s.name,
                    s.end,
                    s.num_rows,
                    s.num_val,
                    s.num_steps,
                    _number(s.num_epochs),
                    _number(s.best_epoch),
                    _number(s.best_loss),
                    len(s.alarms),
                )
                for s in report.stages
            ],
        ),
        _last_samples(samples),
        "<h2>What has a loss</h2>",
        "".join(f"<pre>{escape(text)}</pre>" for text in report.preflight.supervised_texts),
    ]
    title = f"{escape(report.tenant)}/{escape(report.name)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _facts(report: TrainReport) -> list[tuple[object, ...]]:
    planned, peak = report.planned_memory_bytes, report.peak_memory_bytes
    rows: list[tuple[object, ...]] = [
        ("method", f"{report.method} on {report.device}"),
        (
            "perplexity",
            f"{_number(report.first_perplexity)} before, {_number(report.best_perplexity)} at epoch "
            f"{_number(report.best_epoch)}",
        ),
        ("typical questions right", _number(report.sample_accuracy)),
        ("time", f"{report.seconds:.0f} s, {_number(report.tokens_per_s)} tokens/s"),
        (
            "peak memory",
            f"{peak / 2**20:.0f} MiB, planned {planned / 2**20:.0f} MiB ({peak / max(planned, 1):.0%})",
        ),
        ("adapter", f"{report.trainable_parameters} parameters, {report.adapter_bytes / 2**20:.1f} MiB"),
        ("seed", report.seed),
        ("recipe, data", f"{report.recipe_sha256[:12]}, {report.data_sha256[:12]}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in report.versions.items())),
    ]
    if report.cost.total is not None:
        rows.append(
            (
                "cost",
                f"{report.cost.gpu_seconds:.0f} GPU-seconds × {report.cost.price_per_gpu_hour} per hour = "
                f"{report.cost.total}",
            )
        )
    return rows


def _warnings(report: TrainReport) -> str:
    if not report.warnings:
        return ""
    return "<h2>Warnings</h2><ul>" + "".join(f"<li>{escape(text)}</li>" for text in report.warnings) + "</ul>"


def _last_samples(samples: Sequence[dict[str, Any]]) -> str:
    if not samples:
        return ""
    last = samples[-1]["step"]
    rows = [
        (s["question"], s["reference"], s["base"], s["adapter"], ", ".join(s["problems"]) or "–")
        for s in samples
        if s["step"] == last
    ]
    return "<h2>Typical questions after the last epoch</h2>" + _table(
        ("question", "reference", "base", "adapter", "problems"), rows
    )


def _table(header: Sequence[str] | None, rows: Sequence[Sequence[object]]) -> str:
    head = "" if header is None else "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>"
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{head}{body}</table>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
