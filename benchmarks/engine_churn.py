"""`python -m benchmarks.engine_churn`: what decoding streams of a GPU engine feel while cold adapters come and go.

An engine over a base of a named shape with random weights. 16 streams decode with resident adapters of rank 16; one
run is quiet, in one 50 requests arrive for adapters of rank 64 that lie on disk alone (in the page cache), and in one
the same requests arrive for adapters that are resident, so that what the loads cost shows apart from what any request
costs. Both are run for each length of the arriving prompts that is asked for, one row each. The host cache holds two
of the cold adapters and the arena three, so that each load evicts another. Nothing is registered here: that takes a
whole server, see `benchmarks.churn --shape`.

itl_p99_ratio               99th percentile of the times between two tokens of a stream, cold arrivals / quiet
itl_p99_ratio_to_arrivals   the same against resident arrivals
cold_first_token_ms         from a cold request's arrival to its first token, median; warm_first_token_ms likewise
copy_ms                     bytes of an adapter ÷ the measured bandwidth of a copy from pinned memory
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.cold_adapters import images_or_random, write_images
from benchmarks.engine_runs import Bench
from benchmarks.shapes import SHAPES
from benchmarks.versions import versions
from loraplex_server.engine.messages import StepOutputs

NUM_STREAMS, NUM_COLD, COLD_RANK, NUM_DISTINCT = 16, 50, 64, 6
_STEPS_BETWEEN_ARRIVALS = 12
_PROMPT_TOKENS = 64
_SPARE_STEPS = 100  # of a run, beyond what the arrivals take


@dataclass
class Seen:
    """What a run saw, seconds."""

    gaps: list[float] = field(default_factory=list)  # between two tokens of each stream
    first_tokens: list[float] = field(default_factory=list)  # of the requests that arrived
    read: list[float] = field(default_factory=list)
    copied: list[float] = field(default_factory=list)


def watch(bench: Bench, arrivals: Iterator[str], num_steps: int, prompt_tokens: int = 8) -> Seen:
    """16 streams for `num_steps` steps, and a request every few of them while there are `arrivals`, of such prompts."""
    seen = Seen()
    streams = {bench.add(_PROMPT_TOKENS, num_steps, f"16-{number % 8}"): 0.0 for number in range(NUM_STREAMS)}
    arrived: dict[int, float] = {}
    steps = 0
    while bench.engine.has_work():
        result = bench.engine.step()
        now = time.perf_counter()
        if result is None:
            continue
        steps += _note(result, now, streams, arrived, seen)
        if steps and steps % _STEPS_BETWEEN_ARRIVALS == 0 and (adapter := next(arrivals, None)) is not None:
            arrived[bench.add(prompt_tokens, 2, adapter)] = time.perf_counter()
            steps += 1
    return seen


def _note(
    result: StepOutputs, now: float, streams: dict[int, float], arrived: dict[int, float], seen: Seen
) -> int:
    """Remember the step; 1 where all streams gave a token."""
    seen.read += result.stats.adapter_load_seconds
    seen.copied += result.stats.adapter_copy_seconds
    given = 0
    for output in result.outputs:
        if output.sequence_id in arrived and output.token_ids:
            seen.first_tokens.append(now - arrived.pop(output.sequence_id))
        if output.sequence_id in streams and output.token_ids:
            given += 1
            if streams[output.sequence_id]:
                seen.gaps.append(now - streams[output.sequence_id])
            streams[output.sequence_id] = now
    return int(given == NUM_STREAMS)


def pinned_bandwidth(num_bytes: int) -> float:
    """Bytes per second of a copy from pinned memory to the device."""
    source = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return num_bytes / statistics.median(seconds)


def _ms(values: Sequence[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1] * 1e3, 3)


def _itl(gaps: Sequence[float]) -> dict[str, float]:
    return {
        **{f"p{percent}": _ms(gaps, percent) for percent in (50, 90, 99)},
        "max": round(max(gaps) * 1e3, 3),
    }


def report_row(quiet: Seen, warm: Seen, cold: Seen, prompt_tokens: int) -> dict[str, Any]:
    """The figures that the module's docstring names, for arrivals with prompts of one length."""
    return {
        "arrival_prompt": prompt_tokens,
        "itl_p99_ratio": round(_ms(cold.gaps, 99) / _ms(quiet.gaps, 99), 4),
        "itl_p99_ratio_to_arrivals": round(_ms(cold.gaps, 99) / _ms(warm.gaps, 99), 4),
        "itl_resident_arrivals_ms": _itl(warm.gaps),
        "itl_cold_arrivals_ms": _itl(cold.gaps),
        "cold_first_token_ms": _ms(cold.first_tokens, 50),
        "cold_first_token_p90_ms": _ms(cold.first_tokens, 90),
        "warm_first_token_ms": _ms(warm.first_tokens, 50),
        "read_ms": _ms(cold.read, 50),
        "copied_in_ms": _ms(cold.copied, 50),
        "cold_loads": len(cold.read),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print progress on standard error and one JSON object on standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine_churn", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "int8", "bf16"])
    parser.add_argument(
        "--prefill-spread", type=int, help="steps of a prompt while others decode; by default the engine's"
    )
    parser.add_argument(
        "--arrival-prompt",
        type=int,
        nargs="+",
        default=[8],
        help="tokens of the arriving prompts, a row of figures for each; default: 8",
    )
    parser.add_argument("--out", type=Path, help="also write the report here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="loraplex-churn-") as folder:
        found = _measure(options, Path(folder))
    text = json.dumps(found)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 0


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shape, quantization = options.shape, options.quantization
    adapter_bytes = Bench.adapter_bytes(shape, COLD_RANK)
    bench = Bench(
        shape,
        quantization,
        adapter_slots=12,
        arena_bytes=8 * Bench.adapter_bytes(shape, 16) + 3 * adapter_bytes + 2**20,
        max_running=32,
        prefill_spread_steps=options.prefill_spread,
        max_rank=COLD_RANK,
        host_cache_bytes=2 * adapter_bytes + 2**20,
        reader=lambda *parts: images_or_random(folder, *parts),
    )
    try:
        print("writing images of the cold adapters", file=sys.stderr, flush=True)
        cold = write_images(folder, bench.spec, bench.adapter_layout, COLD_RANK, NUM_DISTINCT)
        bench.warm_adapters([f"16-{number}" for number in range(8)])
        num_steps = NUM_COLD * _STEPS_BETWEEN_ARRIVALS + _SPARE_STEPS
        watch(bench, iter(()), _SPARE_STEPS)
        quiet = watch(bench, iter(()), num_steps)
        rows, newcomers = [], cycle(cold)
        for prompt_tokens in options.arrival_prompt:
            print(f"arrivals with prompts of {prompt_tokens} tokens", file=sys.stderr, flush=True)
            hot = islice(cycle([f"16-{number}" for number in range(8)]), NUM_COLD)
            resident = watch(bench, hot, num_steps, prompt_tokens)
            stormy = watch(bench, islice(newcomers, NUM_COLD), num_steps, prompt_tokens)
            rows.append(report_row(quiet, resident, stormy, prompt_tokens))
        device, bandwidth = torch.cuda.get_device_name(), pinned_bandwidth(adapter_bytes)
    finally:
        bench.close()
    return {
        "shape": shape,
        "quantization": quantization,
        "device": device,
        "versions": versions(),
        "adapter_bytes": adapter_bytes,
        "copy_ms": round(adapter_bytes / bandwidth * 1e3, 2),
        "itl_quiet_ms": _itl(quiet.gaps),
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
