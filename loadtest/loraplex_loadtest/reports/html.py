"""One HTML file that opens offline: everything of a result, its plots inline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from loraplex_loadtest.comparison import Change
from loraplex_loadtest.conditions import Verdict
from loraplex_loadtest.figures.groups import DISTRIBUTIONS
from loraplex_loadtest.reports import plots
from loraplex_loadtest.reports.text import seconds_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1a202c; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #e2e8f0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #edf2f7; white-space: nowrap; }
td:first-child, th:first-child, td.last, th.last { text-align: left; }
svg { width: 100%; height: auto; } .bad { color: #c53030; font-weight: 600; } .good { color: #276749; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; }
.card { background: #f7fafc; padding: .6rem 1rem; border-radius: .4rem; }
.card b { display: block; font-size: 1.25rem; } small { color: #718096; }
pre { background: #f7fafc; padding: 1rem; overflow-x: auto; }
"""
_PARTS = ("p50", "p90", "p95", "p99", "p99.9")
_CURVES = ("ttft", "tpot", "itl", "e2e")


def run_page(document: Mapping[str, Any], verdicts: Sequence[Verdict] = ()) -> str:
    """The report of a run."""
    name = document["scenario"]["name"]
    parts = [
        f"<p>{escape(document['scenario']['description'])}</p>",
        _validity(document),
        _cards(document),
        _section("Conditions", _verdicts(verdicts)) if verdicts else "",
        _section("Latency", plots.latency_curves({name: document}, _CURVES), _figures(document["figures"])),
        _section("Over time", plots.timeline_plot(document), _happenings(document["disturbances"])),
        _section("Throughput and latency", plots.throughput_over_time(document)),
        _section("Adapters", plots.adapter_map(document), _groups(document["adapters"])),
        _section("Tenants", _groups(document["tenants"]), _fairness(document["fairness"])),
        _section("Server counters", _counters(document["reconciliation"])),
        _section("Where and how", _details(document)),
    ]
    return _page(f"Load test: {name}", parts)


def saturation_page(document: Mapping[str, Any]) -> str:
    """The report of a saturation search."""
    rows = [
        (
            f"{trial['rate']:.3g}",
            f"{trial['goodput_share']:.1%}",
            f"{trial['tokens_per_s']:.1f}",
            _seconds(trial["ttft_p50_s"]),
            _seconds(trial["ttft_p90_s"]),
            "good" if trial["is_good"] else "stopped" if trial["was_stopped"] else "bad",
        )
        for trial in sorted(document["trials"], key=lambda trial: trial["rate"])
    ]
    told = f"largest sustained rate: <b>{document['sustained_rate']:.3g} requests/s</b>"
    return _page(
        f"Saturation: {document['scenario']['name']}",
        [
            f"<p>{told}</p>",
            _section(
                "Throughput and latency",
                plots.throughput_latency(document["trials"], document["sustained_rate"]),
                _table(("rate/s", "good", "tokens/s", "TTFT p50", "TTFT p90", ""), rows),
            ),
            _section("Where and how", _details(document)),
        ],
    )


def comparison_page(
    documents: Mapping[str, Mapping[str, Any]],
    changes: Sequence[Change],
    threshold: float,
    notes: Sequence[str],
) -> str:
    """Two results, overlaid."""
    rows = [
        (
            one.figure,
            f"{one.before:.4g}",
            f"{one.after:.4g}",
            f"{one.ratio:.3f}",
            "worse" if one.is_regression(threshold) else "within chance" if one.overlaps else "",
        )
        for one in changes
    ]
    return _page(
        "Comparison: " + " and ".join(documents),
        [
            *(f"<p class=bad>{escape(note)}</p>" for note in notes),
            _section("First token", plots.latency_curves(documents, ("ttft",))),
            _section("Time per token, inter-token latency", plots.latency_curves(documents, ("tpot", "itl"))),
            _section("End to end", plots.latency_curves(documents, ("e2e",))),
            _section("Figures", _table(("figure", "before", "after", "ratio", ""), rows)),
        ],
    )


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _validity(document: Mapping[str, Any]) -> str:
    if document["is_valid"]:
        return "<p class=good>The generator kept its plan: these figures are the server's.</p>"
    told = "; ".join(document["generator"]["complaints"]) or "nothing was sent"
    return f"<p class=bad>INVALID: {escape(told)}. These figures say nothing of the server.</p>"


def _cards(document: Mapping[str, Any]) -> str:
    rates = document["rates"]
    cards = {
        "requests": f"{rates['requests']}",
        "failed": f"{rates['error_rate']:.2%}",
        "requests/s": f"{rates['requests_per_s']:.3g}",
        "good": f"{rates['goodput_share']:.1%}",
        "tokens/s": f"{rates['tokens_per_s']:.4g}",
        **{f"{name.upper()} p50": _median(document["figures"][name]) for name in ("ttft", "tpot")},
    }
    if document["scenario"]["client"]["retries"]:
        cards["attempts per request"] = f"{rates['attempts_per_request']:.3f}"
    shown = "".join(
        f"<div class=card><b>{escape(value)}</b>{escape(name)}</div>" for name, value in cards.items()
    )
    return f"<div class=cards>{shown}</div>"


def _figures(figures: Mapping[str, Any]) -> str:
    rows = [
        (name, str(figure["n"]), _seconds(figure["mean"]), *(_part(figure, part) for part in _PARTS), meaning)
        for name, meaning in DISTRIBUTIONS.items()
        if (figure := figures[name])["n"]
    ]
    note = "In brackets: 95 % bootstrap interval. A percentile with fewer than ten samples beyond it is left out."
    return _table(("figure", "n", "mean", *_PARTS, "meaning"), rows) + f"<p><small>{note}</small></p>"


def _groups(groups: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            str(group["requests"]),
            f"{group['error_rate']:.1%}",
            f"{group['goodput_share']:.1%}",
            f"{group['tokens_per_s']:.1f}",
            _part(group["figures"].get("ttft", {}), "p50"),
            _part(group["figures"].get("ttft", {}), "p90"),
            _part(group["figures"].get("tpot", {}), "p50"),
            _seconds(group["figures"].get("cold_ttft", {}).get("mean")),
        )
        for name, group in groups.items()
    ]
    header = ("", "n", "failed", "good", "tokens/s", "TTFT p50", "TTFT p90", "TPOT p50", "cold TTFT mean")
    return _table(header, rows)


def _fairness(fairness: Mapping[str, Any]) -> str:
    rows = [
        (name, "undefined" if fairness[name] is None else f"{fairness[name]:.3f}")
        for name in ("jain_tenants", "jain_adapters", "jain_tenant_speed", "max_min_speed")
    ]
    return _table(("fairness", ""), rows)


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [(one.text(), "fails" if one.fails else "holds") for one in verdicts]
    return _table(("the run fails if", ""), rows)


def _happenings(happenings: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            one["kind"],
            f"{one['began_s']:.2f}",
            f"{one['ended_s']:.2f}",
            ("FAILED: " if one["is_failure"] else "") + one["told"],
        )
        for one in happenings
    ]
    return _table(("disturbance", "from (s)", "to (s)", "what"), rows) if rows else ""


def _counters(reconciliation: Mapping[str, Any] | None) -> str:
    if reconciliation is None:
        return "<p>None were read.</p>"
    rows = [
        (
            f"{row['counter']} {row['adapter']}",
            f"{row['server']:g}",
            f"{row['client']:g}",
            f"{row['difference']:g}",
        )
        for row in reconciliation["rows"]
    ]
    cut = reconciliation["cut_streams"]
    told = f"<p>Difference: {reconciliation['difference']:g}; streams that were cut: {cut}.</p>"
    return told + _table(("counter", "server", "client", "difference"), rows)


def _details(document: Mapping[str, Any]) -> str:
    shown = {
        key: document[key] for key in ("environment", "server", "generator", "scenario") if key in document
    }
    return f"<pre>{escape(json.dumps(shown, indent=2, ensure_ascii=False))}</pre>"


def _part(figure: Mapping[str, Any], part: str) -> str:
    found = figure.get(part)
    if found is None:
        return ""
    return f"{seconds_text(found['value'])} [{seconds_text(found['low'])}–{seconds_text(found['high'])}]"


def _median(figure: Mapping[str, Any]) -> str:
    return seconds_text(figure["p50"]["value"]) if "p50" in figure else "too few"


def _seconds(value: float | None) -> str:
    return "" if value is None else seconds_text(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A last column of words is set to the left, as the first one is."""
    last = " class=last" if header[-1] in ("meaning", "what", "") else ""
    marks = ["" if place < len(header) - 1 else last for place in range(len(header))]

    def line(cells: Sequence[str], tag: str) -> str:
        shown = (f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))
        return f"<tr>{''.join(shown)}</tr>"

    head, body = line(header, "th"), "".join(line(row, "td") for row in rows)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
