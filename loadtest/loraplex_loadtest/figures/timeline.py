"""The run in slices of time, and adapters in slices of time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraplex_loadtest.figures.samples import Samples
from loraplex_loadtest.scenario import BASE

_MAX_SLICES = 120
_MAX_MAP_SLICES = 40
_MAX_MAP_ADAPTERS = 24


def timeline(samples: Samples) -> dict[str, Any]:
    """Columns: beginning of each slice, and what happened in it. Warm-up and drain are part of it."""
    if not len(samples.intended_s):
        return {"slice_s": 1.0, "at_s": []}
    edges = _edges(samples, _MAX_SLICES)
    ttft = samples.ttft_s
    place = np.searchsorted(edges, samples.intended_s, side="right") - 1
    ended_bad = ~samples.is_ok & ~samples.was_cut_by_plan
    bad_place = np.searchsorted(edges, samples.ended_s[ended_bad], side="right") - 1
    message_place = np.searchsorted(edges, samples.message_s, side="right") - 1
    count = len(edges) - 1
    tokens = np.bincount(message_place.clip(0, count - 1), weights=samples.message_tokens, minlength=count)
    width = float(edges[1] - edges[0])
    return {
        "slice_s": width,
        "at_s": edges[:-1].tolist(),
        "offered_per_s": (np.bincount(place.clip(0, count - 1), minlength=count) / width).tolist(),
        "tokens_per_s": (tokens / width).tolist(),
        "errors": np.bincount(bad_place.clip(0, count - 1), minlength=count).tolist(),
        "running": samples.running_at(edges[:-1]).tolist(),
        "ttft_p50_s": [_median(ttft[place == index]) for index in range(count)],
        "ttft_max_s": [_maximum(ttft[place == index]) for index in range(count)],
    }


def heat_map(samples: Samples) -> dict[str, Any]:
    """Median TTFT of the busiest adapters, slice by slice; None where an adapter had no first token."""
    if not len(samples.intended_s):
        return {"adapters": [], "at_s": [], "ttft_p50_s": []}
    edges = _edges(samples, _MAX_MAP_SLICES)
    names, counts = np.unique(samples.adapter, return_counts=True)
    busiest = names[np.argsort(-counts, kind="stable")][:_MAX_MAP_ADAPTERS]
    place = np.searchsorted(edges, samples.intended_s, side="right") - 1
    ttft = samples.ttft_s
    rows = [
        [_median(ttft[(samples.adapter == name) & (place == index)]) for index in range(len(edges) - 1)]
        for name in busiest
    ]
    return {
        "adapters": [str(name) or BASE for name in busiest],
        "at_s": edges[:-1].tolist(),
        "slice_s": float(edges[1] - edges[0]),
        "ttft_p50_s": rows,
    }


def _edges(samples: Samples, most: int) -> NDArray[np.float64]:
    end = max(
        float(samples.intended_s.max()),
        float(np.nanmax(samples.ended_s, initial=0.0)),
        float(samples.window_s[1]),
    )
    width = next(
        step for step in (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 300, 3600) if end / step <= most or step == 3600
    )
    return np.arange(0.0, end + width, width)


def _median(values: NDArray[np.float64]) -> float | None:
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else None


def _maximum(values: NDArray[np.float64]) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.max()) if len(values) else None
