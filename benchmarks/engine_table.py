"""The table of a report of `benchmarks.engine`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_DECODE = re.compile(r"decode_ms_(\d+)_adapters_(\d+)_rows")
_PEER = re.compile(r"(transformers|peft)_(decode_ms_\d+_adapters_\d+_rows)")


def print_table(report: dict[str, Any]) -> None:
    """All figures of all quantizations."""
    for quantization, figures in report["runs"].items():
        print(f"\n{report['shape']} in {quantization}, {report['device']}")
        for line in lines(figures):
            print(line)


def lines(figures: dict[str, Any]) -> Iterator[str]:
    """Of one quantization."""
    yield f"{'adapters':>8} {'rows':>5} {'ms a step':>10} {'of the bus':>10} {'idle':>6} {'tokens/s in all':>16}"
    for key, milliseconds in figures.items():
        found = _DECODE.fullmatch(key)
        if found is None:
            continue
        of = key.removeprefix("decode_ms_")
        share, idle = figures[f"bandwidth_share_{of}"], figures[f"idle_share_{of}"]
        total = figures[f"total_tokens_per_second_{of}"]
        count, rows = found.groups()
        yield f"{count:>8} {rows:>5} {milliseconds:>10.3f} {share:>10.1%} {idle:>6.1%} {total:>16,}"
    for key, value in figures.items():
        if key.startswith("prefill_tokens_per_second_"):
            yield f"prefill, {key.split('_')[-2]} adapters: {value:,} tokens/s"
        elif key.startswith("lora_price_"):
            yield f"LoRA's price, {key.split('_')[-1]} adapters of ranks 8..64, 32 rows: {value:.1%}"
        elif key.endswith("_error"):
            yield f"{key.removesuffix('_error')}: {value}"
    yield from _against_peers(figures)
    if "memory_reserved_bytes" in figures:
        weights, reserved = figures["weight_bytes"] / 2**30, figures["memory_reserved_bytes"] / 2**30
        yield f"started in {figures['start_seconds']} s; weights {weights:.2f} GiB, reserved {reserved:.2f} GiB"
        yield f"memory plan: {figures['memory_plan']}"


def _against_peers(figures: dict[str, Any]) -> Iterator[str]:
    """Their milliseconds, and what ours are of them where the same work was done."""
    for key, theirs in figures.items():
        found = _PEER.fullmatch(key)
        if found is None:
            continue
        peer, work = found.groups()
        ours = figures.get(work)
        ratio = "" if ours is None else f", {theirs / ours:.1f} times ours"
        yield f"{peer}, {work.removeprefix('decode_ms_').replace('_', ' ')}: {theirs} ms a step{ratio}"
