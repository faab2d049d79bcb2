"""A result as text for a terminal; no colour, fit for a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loraplex_loadtest.comparison import Change
from loraplex_loadtest.saturation.search import Saturation

_SHOWN = (
    "ttft",
    "cold_ttft",
    "warm_ttft",
    "tpot",
    "itl",
    "e2e",
    "ntpot",
    "client_queue",
    "server_queue",
    "adapter_load",
)
_PARTS = ("p50", "p90", "p95", "p99", "p99.9")
_MAX_GROUPS = 12


def result_text(document: Mapping[str, Any]) -> str:
    """Tables of a run."""
    rates, generator = document["rates"], document["generator"]
    lines = [
        f"{document['scenario']['name']}: {rates['requests']} requests in {_window(document)}, "
        f"{rates['ok']} ended well, {rates['error_rate']:.2%} failed",
        f"offered {rates['offered_per_s']:.2f}/s, done {rates['requests_per_s']:.2f}/s, "
        f"good {rates['goodput_per_s']:.2f}/s ({rates['goodput_share']:.1%}), {rates['tokens_per_s']:.1f} tokens/s",
        "",
        _figures(document["figures"]),
    ]
    bad = {name: count for name, count in rates["statuses"].items() if name != "OK"}
    if bad:
        lines += ["", "ended otherwise: " + ", ".join(f"{name} {count}" for name, count in bad.items())]
    if document["scenario"]["client"]["retries"]:
        lines += [
            "",
            f"retries: {rates['attempts']} attempts, {rates['attempts_per_request']:.3f} for each request",
        ]
    for title, key in (("tenant", "tenants"), ("adapter", "adapters")):
        if len(document[key]) > 1:
            lines += ["", _groups(title, document[key])]
    if len(document["tenants"]) > 1:
        fair = document["fairness"]
        lines += [
            "",
            f"Jain index: {_plain(fair['jain_tenants'])} of what tenants got of what they asked for, "
            f"{_plain(fair['jain_tenant_speed'])} of their speed",
        ]
    if document["disturbances"]:
        lines += ["", *(_happening(one) for one in document["disturbances"])]
    lines += [
        "",
        f"generator: p99 send lag {_seconds(generator['send_lag_p99_s'])}, "
        f"busiest process {generator['cpu_share']:.0%} of a core, "
        f"{generator['messages_per_s']:.0f} messages/s, {generator['peak_streams']} streams at most",
        _counters(document["reconciliation"]),
    ]
    if document["prompt_lengths"] == "nominal":
        lines.append("prompt lengths are nominal: name a tokenizer for exact ones")
    if document["prompt_lengths"] == "inexact":
        lines.append(
            "prompt lengths are not the plan's: the server counts otherwise than the tokenizer that was named"
        )
    if miscounted := document["miscounted_requests"]:
        lines.append(
            f"in {miscounted} requests the server counted other tokens than arrived here, where a piece of text is "
            "one; TPOT and ITL are of pieces then. --continuous-usage asks for a count in every piece"
        )
    if not document["is_valid"]:
        complaints = "; ".join(generator["complaints"]) or "nothing was sent"
        lines += ["", f"INVALID: {complaints}. These figures say nothing of the server."]
    return "\n".join(lines)


def comparison_text(changes: Sequence[Change], threshold: float, differences: Sequence[str]) -> str:
    """Both results in a table."""
    rows = [
        (
            one.figure,
            _value(one.figure, one.before),
            _value(one.figure, one.after),
            f"{one.ratio:.3f}",
            "worse" if one.is_regression(threshold) else "chance" if one.overlaps else "",
        )
        for one in changes
    ]
    table = _table(("figure", "before", "after", "ratio", ""), rows)
    return "\n".join([table, *(f"note: {told}" for told in differences)])


def saturation_text(found: Saturation) -> str:
    """The search as a table, in order of rates."""
    rows = [
        (
            f"{one.rate:.3g}",
            f"{one.goodput_share:.1%}",
            f"{one.requests_per_s:.3g}",
            f"{one.tokens_per_s:.1f}",
            _seconds(one.ttft_p50_s),
            _seconds(one.ttft_p90_s),
            "good" if one.is_good else "stopped" if one.was_stopped else "bad",
        )
        for one in sorted(found.trials, key=lambda trial: trial.rate)
    ]
    table = _table(("rate/s", "good", "done/s", "tokens/s", "TTFT p50", "TTFT p90", ""), rows)
    told = f"largest sustained rate: {found.sustained_rate:.3g} requests/s"
    if found.failed_rate is None:
        told += "; the search ended at its largest rate"
    if found.generator_limited:
        told += "; beyond it the generator was the bottleneck"
    return f"{table}\n{told}"


def seconds_text(value: float) -> str:
    """In the unit that reads best."""
    if value >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def _figures(figures: Mapping[str, Any]) -> str:
    rows = [
        (name, str(figure["n"]), _seconds(figure["mean"]), *(_interval(figure.get(part)) for part in _PARTS))
        for name in _SHOWN
        if (figure := figures[name])["n"]
    ]
    return _table(("figure", "n", "mean", *_PARTS), rows)


def _groups(title: str, groups: Mapping[str, Any]) -> str:
    rows = []
    for name, group in list(groups.items())[:_MAX_GROUPS]:
        figures = group["figures"]
        rows.append(
            (
                name,
                str(group["requests"]),
                f"{group['error_rate']:.1%}",
                f"{group['tokens_per_s']:.1f}",
                *(_part(figures, figure, part) for figure in ("ttft", "tpot") for part in ("p50", "p90")),
                _mean(figures, "cold_ttft"),
            )
        )
    if len(groups) > _MAX_GROUPS:
        rows.append((f"and {len(groups) - _MAX_GROUPS} more", *[""] * 7))
    header = (title, "n", "failed", "tokens/s", "TTFT p50", "p90", "TPOT p50", "p90", "cold mean")
    return _table(header, [(*row, *[""] * (len(header) - len(row))) for row in rows])


def _happening(one: Mapping[str, Any]) -> str:
    failed = " FAILED:" if one["is_failure"] else ""
    took = one["ended_s"] - one["began_s"]
    return f"at {one['began_s']:.1f} s: {one['kind']}{failed} {one['told']} ({seconds_text(max(took, 0.0))})"


def _counters(reconciliation: Mapping[str, Any] | None) -> str:
    if reconciliation is None:
        return "server counters: none were read"
    if reconciliation["is_exact"]:
        return "server counters: equal to what arrived here, difference 0"
    told = f"server counters: difference {reconciliation['difference']:g}"
    if reconciliation["is_explained"]:
        return f"{told}, left unread by {reconciliation['cut_streams']} streams that were cut"
    return f"{told}: somebody else uses this server, or tokens were lost"


def _window(document: Mapping[str, Any]) -> str:
    start_s, end_s = document["window_s"]
    return f"{end_s - start_s:g} s"


def _interval(part: Mapping[str, float] | None) -> str:
    return (
        ""
        if part is None
        else f"{seconds_text(part['value'])} [{_short(part['low'])}–{_short(part['high'])}]"
    )


def _short(value: float) -> str:
    return f"{value:.3g}" if value >= 1 else f"{value * 1e3:.3g}" if value >= 1e-3 else f"{value * 1e6:.3g}"


def _part(figures: Mapping[str, Any], figure: str, part: str) -> str:
    found = figures.get(figure, {}).get(part)
    return "" if found is None else seconds_text(found["value"])


def _mean(figures: Mapping[str, Any], figure: str) -> str:
    found = figures.get(figure, {}).get("mean")
    return "" if found is None else seconds_text(found)


def _value(figure: str, value: float) -> str:
    is_rate = figure.endswith("_per_s") or figure in ("goodput_share", "error_rate")
    return f"{value:.4g}" if is_rate else seconds_text(value)


def _seconds(value: float | None) -> str:
    return "" if value is None else seconds_text(value)


def _plain(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [tuple(header), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
