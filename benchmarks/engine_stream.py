"""`python -m benchmarks.engine_stream`: what many adapters cost a stream of requests, against few.

An engine over a base of a named shape with random weights, adapters of rank 16 on all linear layers. 32 requests are in
flight at any time, 128 tokens of prompt and of output each, their adapters drawn by Zipf with exponent 1: once from 8
adapters, once from 1,000, of which 64 fit the device and whose others are read from the host's memory when they are
asked for. Each is run twice, in turn, with the 64 adapters resident that are asked for most.

The clients begin apart, as those do who know nothing of each other, or together. Over few adapters those that began
together stay in step, since all requests are of one length, and their prompts come 32 at a time. Over many they fall
out of step, behind adapters that are read; so together compares many adapters with few and such steps with others.

streams     one for each start:
ratio       tokens per second of both runs with many adapters ÷ those with few
few, many   of each run tokens per second, loads of adapters, and its steps, those with prompts and the others: how
            many, and summed over them milliseconds of the device, rows, different adapters
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_runs import Bench
from benchmarks.shapes import SHAPES
from benchmarks.versions import versions
from loraplex_server.engine.messages import StepOutputs

FEW, MANY, RESIDENT = 8, 1000, 64
REQUESTS = 600
STARTS = ("apart", "together")
_IN_FLIGHT, _PROMPT, _OUTPUT, _ZIPF = 32, 128, 128, 1.0


@dataclass(slots=True)
class Steps:
    """Those of one kind."""

    count: int = 0
    device_ms: float = 0.0
    rows: int = 0
    adapters: int = 0  # summed over steps

    def note(self, result: StepOutputs) -> None:
        stats = result.stats
        self.count += 1
        self.device_ms += stats.step_seconds * 1e3
        self.rows += stats.prefill_tokens + stats.decode_tokens
        self.adapters += stats.batch_adapters


@dataclass(slots=True)
class Seen:
    """What one stream saw."""

    tokens_per_second: float = 0.0
    adapter_loads: int = 0
    with_prompts: Steps = field(default_factory=Steps)
    decodes_alone: Steps = field(default_factory=Steps)

    def note(self, result: StepOutputs) -> None:
        kind = self.with_prompts if result.stats.prefill_tokens else self.decodes_alone
        kind.note(result)


def run(bench: Bench, num_adapters: int, *, apart: bool) -> Seen:
    """One stream; the adapters asked for most are resident when it begins."""
    names = [f"16-{number}" for number in range(num_adapters)]
    bench.stream(2 * _IN_FLIGHT, _IN_FLIGHT, names[:FEW], _ZIPF, _PROMPT, 8)  # compiles what no graph holds
    make_resident(bench, names[:RESIDENT])
    seen = Seen()
    result = bench.stream(
        REQUESTS, _IN_FLIGHT, names, _ZIPF, _PROMPT, _OUTPUT, on_step=seen.note, apart=apart
    )
    seen.tokens_per_second, seen.adapter_loads = result.tokens_per_second, result.adapter_loads
    print(f"{num_adapters} adapters: {seen}", file=sys.stderr, flush=True)
    return seen


def make_resident(bench: Bench, adapters: Sequence[str]) -> None:
    """As many as fit the device, those asked for most first: in the end these were used last, and stay longest."""
    for adapter in reversed(adapters):
        bench.warm_adapters([adapter])  # one by one: together, those that are loaded begin behind the others


def main(arguments: Sequence[str] | None = None) -> int:
    """Print progress on standard error and one JSON object on standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine_stream", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "int8", "bf16"])
    parser.add_argument("--prefill-spread", type=int, help="steps of a prompt; by default the engine's")
    parser.add_argument("--min-prefill-rows", type=int, default=8, help="of a step with prompts; default: 8")
    parser.add_argument(
        "--start", choices=STARTS, nargs="+", default=STARTS, help="of the clients; default: each in turn"
    )
    parser.add_argument("--out", type=Path, help="also write the report here")
    options = parser.parse_args(arguments)
    found = _measure(options)
    text = json.dumps(found)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 0


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(
        options.shape,
        options.quantization,
        adapter_slots=RESIDENT,
        prefill_spread_steps=options.prefill_spread,
        min_prefill_rows=options.min_prefill_rows,
    )
    try:
        streams = [_stream(bench, start) for start in options.start]
    finally:
        bench.close()
    return {
        "shape": options.shape,
        "quantization": options.quantization,
        "device": torch.cuda.get_device_name(),
        "versions": versions(),
        "prompt_tokens": _PROMPT,
        "output_tokens": _OUTPUT,
        "prefill_spread_steps": options.prefill_spread,
        "min_prefill_rows": options.min_prefill_rows,
        "streams": streams,
    }


def _stream(bench: Bench, start: str) -> dict[str, Any]:
    """Few and many in turn, twice."""
    print(f"clients begin {start}", file=sys.stderr, flush=True)
    runs = [(count, run(bench, count, apart=start == "apart")) for count in (FEW, MANY) * 2]
    few, many = ([seen for of, seen in runs if of == count] for count in (FEW, MANY))
    return {
        "start": start,
        "ratio": round(_sum(many) / _sum(few), 4),
        "few": [asdict(seen) for seen in few],
        "many": [asdict(seen) for seen in many],
    }


def _sum(runs: list[Seen]) -> float:
    return sum(seen.tokens_per_second for seen in runs)


if __name__ == "__main__":
    raise SystemExit(main())
