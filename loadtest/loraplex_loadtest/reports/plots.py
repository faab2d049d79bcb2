"""Plots as inline SVG. matplotlib without a display; text stays text, so that it can be searched."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")
_SIZE = (9.0, 3.4)
_LABELS = {
    "ttft": "time to first token",
    "cold_ttft": "the same, cold",
    "warm_ttft": "the same, warm",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2e": "end to end",
}


def latency_curves(documents: Mapping[str, Mapping[str, Any]], figures: Sequence[str]) -> str:
    """Share of requests within a time, for each figure of each document; a figure has one colour per document."""
    figure, axes = _axes()
    styles = ("-", "--", ":", "-.")
    for number, (name, document) in enumerate(documents.items()):
        curves = document["curves"]
        for place, key in enumerate(key for key in figures if key in curves):
            label = _LABELS[key] if len(documents) == 1 else f"{_LABELS[key]}, {name}"
            axes.plot(
                curves[key],
                curves["percent"],
                color=_COLOURS[place % len(_COLOURS)],
                linestyle=styles[number % len(styles)],
                label=label,
            )
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("% within that time")
    if axes.lines:
        axes.legend(fontsize=8)
    return _svg(figure)


def timeline_plot(document: Mapping[str, Any]) -> str:
    """Load and latency over time, with what was done meanwhile."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    line = document["timeline"]
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(_SIZE[0], 5.0), sharex=True)
    x = line["at_s"]
    upper.plot(x, line["running"], color=_COLOURS[0], label="requests in flight")
    upper.plot(x, line["offered_per_s"], color=_COLOURS[1], label="requests/s offered")
    right = upper.twinx()
    right.fill_between(x, line["tokens_per_s"], step="post", alpha=0.2, color=_COLOURS[2])
    right.set_ylabel("tokens/s", color=_COLOURS[2])
    upper.legend(fontsize=8, loc="upper left")
    for key, colour, label in (
        ("ttft_max_s", _COLOURS[1], "TTFT, largest of the slice"),
        ("ttft_p50_s", _COLOURS[0], "median"),
    ):
        known = [(at, value) for at, value in zip(x, line[key], strict=True) if value is not None]
        lower.plot([at for at, _ in known], [v for _, v in known], ".-", lw=0.9, color=colour, label=label)
    errors = [(at, count) for at, count in zip(x, line["errors"], strict=True) if count]
    if errors:
        lower.scatter(
            [at for at, _ in errors], [0] * len(errors), marker="x", color="#c53030", label="errors"
        )
    lower.set_ylabel("seconds")
    lower.set_xlabel("seconds since the run began, by intended send")
    for one in document["disturbances"]:
        for axes in (upper, lower):
            axes.axvspan(
                one["began_s"], max(one["ended_s"], one["began_s"] + 0.05), color="#d69e2e", alpha=0.25
            )
        upper.annotate(
            one["kind"],
            (one["began_s"], 1.01),
            xycoords=("data", "axes fraction"),
            rotation=30,
            fontsize=7,
            color="#c53030" if one["is_failure"] else "#744210",
        )
        for mark in one.get("marks", ()):
            lower.axvline(mark["at_s"], color="#744210", lw=0.8, ls=":")
            lower.annotate(
                mark["what"],
                (mark["at_s"], 1.01),
                xycoords=("data", "axes fraction"),
                rotation=30,
                fontsize=7,
            )
    for axes in (upper, lower):
        axes.axvspan(0, document["window_s"][0], color="#a0aec0", alpha=0.2)
        axes.grid(alpha=0.3)
    lower.legend(fontsize=8)
    return _svg(figure)


def throughput_latency(trials: Sequence[Mapping[str, Any]], sustained_rate: float) -> str:
    """Trials of a saturation search: what was offered, what was done, and how long the first token took."""
    figure, axes = _axes()
    ordered = sorted(trials, key=lambda trial: trial["rate"])
    right = axes.twinx()
    rates = [trial["rate"] for trial in ordered]
    axes.plot(
        rates, _numbers([trial["ttft_p50_s"] for trial in ordered]), "o-", color=_COLOURS[0], label="TTFT p50"
    )
    axes.plot(
        rates,
        _numbers([trial["ttft_p90_s"] for trial in ordered]),
        "o--",
        color=_COLOURS[1],
        label="TTFT p90",
    )
    right.plot(rates, [trial["tokens_per_s"] for trial in ordered], "s-", color=_COLOURS[2])
    right.set_ylabel("tokens/s", color=_COLOURS[2])
    axes.axvline(sustained_rate, color="#c53030", lw=0.8)
    axes.annotate(
        f"sustained: {sustained_rate:.3g}/s",
        (sustained_rate, axes.get_ylim()[1]),
        fontsize=8,
        color="#c53030",
    )
    axes.set_xlabel("requests/s offered")
    axes.set_ylabel("seconds")
    axes.legend(fontsize=8, loc="upper left")
    return _svg(figure)


def throughput_over_time(document: Mapping[str, Any]) -> str:
    """A single run's own throughput-latency picture: each slice of time is a point."""
    figure, axes = _axes()
    line = document["timeline"]
    points = [
        (running, tokens, ttft)
        for running, tokens, ttft in zip(
            line["running"], line["tokens_per_s"], line["ttft_p50_s"], strict=True
        )
        if ttft is not None
    ]
    drawn = axes.scatter(
        [tokens for _, tokens, _ in points],
        [ttft for _, _, ttft in points],
        c=[running for running, _, _ in points],
        cmap="viridis",
        s=18,
    )
    figure.colorbar(drawn, label="requests in flight")
    axes.set_xlabel("tokens/s in the slice")
    axes.set_ylabel("TTFT, median of the slice (s)")
    return _svg(figure)


def adapter_map(document: Mapping[str, Any]) -> str:
    """Median first token of each adapter, slice by slice."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    heat = document["heat_map"]
    rows = [_numbers(row) for row in heat["ttft_p50_s"]]
    figure, axes = pyplot.subplots(figsize=(_SIZE[0], 0.8 + 0.28 * len(rows)))
    end = heat["at_s"][-1] + heat["slice_s"]
    drawn = axes.imshow(
        rows, aspect="auto", interpolation="nearest", cmap="magma_r", extent=(0, end, len(rows) - 0.5, -0.5)
    )
    axes.set_yticks(range(len(rows)), heat["adapters"], fontsize=8)
    axes.set_xlabel("seconds since the run began")
    figure.colorbar(drawn, label="TTFT, median (s)")
    return _svg(figure)


def _axes() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=_SIZE)
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    stream = io.StringIO()
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loraplex"}):
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    text = stream.getvalue()
    return re.sub(
        r'(<svg [^>]*?) width="[^"]*" height="[^"]*"|(<svg [^>]*?) height="[^"]*"',
        r"\1\2",
        text[text.index("<svg") :],
        count=1,
    )


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
