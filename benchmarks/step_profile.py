"""What a decode step on a GPU spends its time on, kernel by kernel, from the driver's own record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.engine_runs import Bench

_STEPS = 10


def profile_decode(
    bench: Bench, rows: int, adapters: Sequence[str], prompt_tokens: int
) -> list[dict[str, Any]]:
    """Kernels of `_STEPS` decode steps in all, the costliest first.

    µs are of one step. A kernel that starts while the one before drains is counted from its start to the start of the
    next, so that the figures add up to the step.
    """
    for row in range(rows):
        bench.add(prompt_tokens, 64, adapters[row % len(adapters)] if adapters else None)
    while not _is_decoding(bench, rows):
        pass
    torch.cuda.synchronize()
    spans = _kernel_spans(lambda: [bench.engine.step() for _ in range(_STEPS)])
    bench.run()
    return _table(spans)


def _is_decoding(bench: Bench, rows: int) -> bool:
    result = bench.engine.step()
    return result is not None and result.stats.prefill_tokens == 0 and result.stats.decode_tokens == rows


def _kernel_spans(run: Callable[[], object]) -> list[tuple[str, float, float]]:
    """(name, start, end) in µs, by start."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as record:
        run()
        torch.cuda.synchronize()
    events = [event for event in record.events() or [] if event.device_type.name == "CUDA"]
    spans = [(event.name, float(event.time_range.start), float(event.time_range.end)) for event in events]
    return sorted(spans, key=lambda span: span[1])


def _table(spans: list[tuple[str, float, float]]) -> list[dict[str, Any]]:
    counts: dict[str, int] = defaultdict(int)
    until_next: dict[str, float] = defaultdict(float)
    running: dict[str, float] = defaultdict(float)
    for (name, start, end), (_, next_start, _) in zip(spans, [*spans[1:], spans[-1]], strict=True):
        counts[name] += 1
        running[name] += end - start
        until_next[name] += max(next_start - start, 0.0)
    return [
        {
            "kernel": name[:60],
            "launches": round(counts[name] / _STEPS, 1),
            "us_until_next": round(until_next[name] / _STEPS, 1),
            "us_running": round(running[name] / _STEPS, 1),
            "us_per_launch": round(running[name] / counts[name], 2),
        }
        for name in sorted(until_next, key=lambda name: -until_next[name])
    ]
