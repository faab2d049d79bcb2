"""`python -m benchmarks.engine`: the engine on a GPU, over a base of a named shape with random weights.

Decode is milliseconds per step, from the difference of two output lengths, so that prefill is out; for that prompts go
in whole (`--prefill-spread 1`) unless told otherwise. Adapters are of the given ranks in turn, on all linear layers.
The share of the copy bandwidth counts what a step reads at least (`Bench.step_bytes`). `--peer` runs the same work on
the same weights in the same process. Progress goes to standard error, a table and one JSON object to standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.bandwidth import copy_bandwidth
from benchmarks.engine_runs import Bench
from benchmarks.engine_table import print_table
from benchmarks.gpu_peers import TransformersPeer
from benchmarks.shapes import SHAPES
from benchmarks.step_profile import profile_decode
from benchmarks.versions import versions


def main() -> None:
    """Run what the arguments ask for; the last line of standard output is one JSON object."""
    arguments = _parser().parse_args()
    bandwidth = copy_bandwidth()
    report: dict[str, Any] = {
        "shape": arguments.shape,
        "device": torch.cuda.get_device_name(),
        "versions": versions(),
        "copy_bytes_per_second": bandwidth,
        "prefill_spread_steps": arguments.prefill_spread,
        "runs": {},
    }
    for quantization in arguments.quantization:
        for name, run in _plan(arguments, quantization, bandwidth):
            try:
                report["runs"].setdefault(quantization, {}).update(run())
            except Exception as error:  # one failing run must not cost the others
                report["runs"].setdefault(quantization, {})[f"{name}_error"] = (
                    f"{type(error).__name__}: {error}"
                )
                print(f"{quantization} {name}: {error!r}", file=sys.stderr, flush=True)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_table(report)
    print(json.dumps(report))


def _plan(
    arguments: argparse.Namespace, quantization: str, bandwidth: float
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    bench = None
    try:
        bench = Bench(
            arguments.shape,
            quantization,
            max_running=max(arguments.rows),
            int8_head=arguments.int8_head,
            prefill_spread_steps=arguments.prefill_spread,
            max_rank=max([*arguments.ranks, 64]),
        )
        yield "start", lambda: _start(bench)
        yield "decode", lambda: _decode(bench, arguments, bandwidth)
        if arguments.profile:
            yield "profile", lambda: _profile(bench, arguments)
        if arguments.lora_price:
            yield "lora_price", lambda: _lora_price(bench, arguments)
        if arguments.prefill:
            yield "prefill", lambda: _prefill(bench, arguments)
        weights = bench.weights
    finally:
        if bench is not None:
            bench.close()
            del bench
    if arguments.peer and quantization in ("bf16", "nf4"):
        yield "peer", lambda: _peer(arguments, quantization, weights)


def _start(bench: Bench) -> dict[str, Any]:
    return {
        "start_seconds": round(bench.start_seconds, 2),
        "weight_bytes": bench.engine.ready.weight_bytes,
        "memory_plan": bench.engine.ready.memory_plan,
        "memory_reserved_bytes": torch.cuda.memory_reserved(),
        "adapter_bytes_rank_16": bench.adapters.nbytes(16),
    }


def _ranks(count: int, ranks: list[int]) -> list[int]:
    return [ranks[number % len(ranks)] for number in range(count)]


def _names(count: int, ranks: list[int]) -> list[str]:
    return [f"{rank}-{number}" for number, rank in enumerate(_ranks(count, ranks))]


def _decode(bench: Bench, arguments: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
    lengths = (arguments.output // 4, arguments.output)
    figures: dict[str, Any] = {}
    for count in arguments.adapters:
        adapters = _names(count, arguments.ranks)
        bench.warm_adapters(adapters)
        for rows in arguments.rows:
            bench.decode(rows, adapters, arguments.prompt, (4, 12))
            result = bench.decode(rows, adapters, arguments.prompt, lengths)
            floor_ms = bench.step_bytes(rows, _ranks(count, arguments.ranks)) / bandwidth * 1e3
            of = f"{count}_adapters_{rows}_rows"
            figures[f"decode_ms_{of}"] = round(result.ms_per_step, 4)
            figures[f"idle_share_{of}"] = round(result.idle_share, 4)
            figures[f"bandwidth_share_{of}"] = round(floor_ms / result.ms_per_step, 4)
            figures[f"total_tokens_per_second_{of}"] = round(result.tokens_per_second)
            print(f"decode_ms_{of} {result.ms_per_step:.3f}", file=sys.stderr, flush=True)
    return figures


def _profile(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    """The kernels of a decode step at each number of rows and adapters."""
    figures: dict[str, Any] = {}
    for count in arguments.adapters:
        for rows in arguments.rows:
            kernels = profile_decode(bench, rows, _names(count, arguments.ranks), arguments.prompt)
            figures[f"profile_{count}_adapters_{rows}_rows"] = kernels[:16]
    return figures


def _lora_price(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    """Mixed ranks 8..64 at 32 rows against no adapter, in turn, three times."""
    lengths = (arguments.output // 4, arguments.output)
    figures: dict[str, Any] = {}
    for count in (1, 8, 32):
        adapters = _names(count, [8, 16, 32, 64])
        if count == 1:
            adapters = ["32-0"]
        bench.warm_adapters(adapters)
        ratios = []
        for _ in range(3):
            base = bench.decode(32, [], arguments.prompt, lengths).ms_per_step
            with_lora = bench.decode(32, adapters, arguments.prompt, lengths).ms_per_step
            ratios.append(with_lora / base)
        figures[f"lora_price_{count}"] = round(sorted(ratios)[1] - 1, 4)
        print(f"lora price {count}: {figures[f'lora_price_{count}']:.1%}", file=sys.stderr, flush=True)
    return figures


def _prefill(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    figures = {}
    for count in (0, 1, 8):
        adapters = _names(count, arguments.ranks)
        bench.warm_adapters(adapters)
        bench.prefill(4, adapters, 2048)
        speed = sorted(bench.prefill(8, adapters, 2048) for _ in range(3))[1]
        figures[f"prefill_tokens_per_second_{count}_adapters"] = round(speed)
        print(f"prefill {count} adapters {speed:,.0f} tokens/s", file=sys.stderr, flush=True)
    return figures


def _peer(arguments: argparse.Namespace, quantization: str, weights: Any) -> dict[str, Any]:
    """The decodes of `_decode` at `--peer-rows`: transformers without adapters, PEFT with the most asked for."""
    started = time.monotonic()
    lengths = (arguments.output // 4, arguments.output)
    peer = TransformersPeer(arguments.shape, weights, quantization)
    figures: dict[str, Any] = {}
    for rows in arguments.peer_rows:
        milliseconds = peer.decode_ms(rows, arguments.prompt, lengths)
        figures[f"transformers_decode_ms_0_adapters_{rows}_rows"] = round(milliseconds, 2)
    if arguments.peer == "peft":
        count = max(arguments.adapters)
        names = [f"adapter_{number}" for number in range(count)]
        peer.add_adapters(names, arguments.ranks[0])
        for rows in arguments.peer_rows:
            milliseconds = peer.decode_ms(rows, arguments.prompt, lengths, names)
            figures[f"peft_decode_ms_{count}_adapters_{rows}_rows"] = round(milliseconds, 2)
    peer.close()
    figures["peer_seconds"] = round(time.monotonic() - started, 1)
    print(figures, file=sys.stderr, flush=True)
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--quantization", nargs="+", default=["nf4"], choices=["nf4", "int8", "bf16"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--adapters", nargs="+", type=int, default=[0, 8], help="0: the base alone")
    parser.add_argument("--ranks", nargs="+", type=int, default=[16])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--int8-head", action="store_true")
    parser.add_argument("--profile", action="store_true", help="time each kernel of a decode step")
    parser.add_argument(
        "--lora-price", action="store_true", help="1, 8, 32 adapters of ranks 8..64 at 32 rows"
    )
    parser.add_argument("--prefill", action="store_true", help="prompts of 2048 tokens")
    parser.add_argument(
        "--prefill-spread",
        type=int,
        default=1,
        help="steps of a prompt while others decode; a server takes 16",
    )
    parser.add_argument("--peer", choices=["transformers", "peft"])
    parser.add_argument(
        "--peer-rows", nargs="+", type=int, default=[32], help="of what the peer runs as well"
    )
    parser.add_argument("--out", type=Path, help="also write the report here, after every run")
    return parser


if __name__ == "__main__":
    main()
