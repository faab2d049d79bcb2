"""`python -m benchmarks.churn`: what streams feel while other adapters are registered, loaded and evicted in a storm.

A real server with the resident base, SmolLM2-135M in int8, and 16 streams. Every round has them decode twice from the
same beginning: once in quiet, once through a storm that registers, warms and deletes adapters that were never seen
before, five at a time, with fewer slots than adapters, so that each evicts another. Tokens are compared at equal places
of their streams, for a step grows slower with the context. Server, streams and storm share the machine; the storm's
client has the lowest priority, for its work is another machine's.

itl_p99_ratio     99th percentile of the times between two tokens of a stream, in the storm / in quiet, all rounds
                  together (goal: at most 1.15)
itl_p50_ratio     the same of the median: what golden prompts and copies take of the throughput
load_seconds      from asking for a registered adapter until it is in its slot
register_seconds  from the first byte sent until the version is registered, golden prompts included
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.churn_storm import Storm, run_storm
from benchmarks.churn_streams import Gap, StreamsProcess
from benchmarks.workload import ADAPTERS, adapter_packages
from loraplex_cli.demo.server_process import running_server
from loraplex_client import LoraplexClient

NUM_STREAMS, NUM_SLOTS = 16, 8
GOAL = 1.15
_SERVER_ARGUMENTS = (
    *("--quantization", "int8", "--device", "cpu", "--adapter-slots", str(NUM_SLOTS)),
    *("--max-output-tokens", "4000", "--max-context-tokens", "4096", "--kv-cache-bytes", str(4 * 2**30)),
)


@dataclass
class Measured:
    """What was seen, over all rounds. Seconds."""

    quiet: list[float] = field(default_factory=list)
    storm: list[float] = field(default_factory=list)
    storms: list[Storm] = field(default_factory=list)
    round_ratios: list[float] = field(default_factory=list)

    def add(self, quiet: Sequence[Gap], stormy: Sequence[Gap], storm: Storm) -> None:
        """A round: of the gaps in the storm all, and of those in quiet the ones at the same places of their streams."""
        in_storm = [gap for gap in stormy if storm.began_s <= gap.at_s < storm.ended_s]
        first, last = min(gap.index for gap in in_storm), max(gap.index for gap in in_storm)
        self.storm += (in_storm_s := [gap.seconds for gap in in_storm])
        self.quiet += (in_quiet_s := [gap.seconds for gap in quiet if first <= gap.index <= last])
        self.storms.append(storm)
        self.round_ratios.append(percentile(in_storm_s, 99) / percentile(in_quiet_s, 99))


def percentile(values: Sequence[float], percent: int) -> float:
    """By linear interpolation."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    packages = adapter_packages(options.adapters)
    measured = Measured()
    with running_server([*_SERVER_ARGUMENTS, "--num-threads", str(options.num_threads)]) as server:
        with LoraplexClient(server.target, timeout_s=300.0) as client:
            for name, package in packages.items():
                client.adapters.upload(name, package)
        for number in range(options.rounds):
            _round(
                server.target,
                packages[ADAPTERS[number % 3]],
                number * options.adapters_per_round,
                options,
                measured,
            )
            _say(f"round {number + 1} of {options.rounds}: p99 storm / quiet {measured.round_ratios[-1]:.3f}")
    report = _report(measured, options)
    print(_table(report), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(report))
    return 0


def _round(target: str, package: Path, first: int, options: argparse.Namespace, measured: Measured) -> None:
    adapters = [ADAPTERS[index % len(ADAPTERS)] for index in range(NUM_STREAMS)]
    with StreamsProcess(target, adapters, options.tokens) as streams:
        quiet = streams.gaps()
    with StreamsProcess(target, adapters, options.tokens) as streams:
        storm = run_storm(target, package, first, options.adapters_per_round)
        stormy = streams.gaps()
    measured.add(quiet, stormy, storm)


def _report(measured: Measured, options: argparse.Namespace) -> dict[str, Any]:
    quiet, storm = (
        {f"p{p}": _ms(percentile(gaps, p)) for p in (50, 90, 99)} for gaps in (measured.quiet, measured.storm)
    )
    registers = [seconds for each in measured.storms for seconds in each.register_s]
    loads = [seconds for each in measured.storms for seconds in each.load_s]
    return {
        "itl_p99_ratio": round(percentile(measured.storm, 99) / percentile(measured.quiet, 99), 3),
        "itl_p50_ratio": round(percentile(measured.storm, 50) / percentile(measured.quiet, 50), 3),
        "round_p99_ratios": [round(ratio, 3) for ratio in measured.round_ratios],
        "goal": GOAL,
        "itl_quiet_ms": quiet,
        "itl_storm_ms": storm,
        "register_seconds": {
            "median": round(statistics.median(registers), 3),
            "max": round(max(registers), 3),
        },
        "load_seconds": {"median": round(statistics.median(loads), 3), "max": round(max(loads), 3)},
        "streams": NUM_STREAMS,
        "adapter_slots": NUM_SLOTS,
        "adapters": options.rounds * options.adapters_per_round,
        "engine_threads": options.num_threads,
        "versions": {name: version(name) for name in ("loraplex", "torch", "grpcio")},
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _table(report: dict[str, Any]) -> str:
    verdict = "met" if report["itl_p99_ratio"] <= GOAL else "missed"
    return "\n".join(
        [
            f"between tokens, quiet: {report['itl_quiet_ms']} ms",
            f"between tokens, storm: {report['itl_storm_ms']} ms",
            f"p99 storm / quiet: {report['itl_p99_ratio']} (goal {GOAL}: {verdict})",
            f"by round: {report['round_p99_ratios']}",
            f"median storm / quiet: {report['itl_p50_ratio']}",
            f"registered in {report['register_seconds']} s, loaded in {report['load_seconds']} s",
        ]
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--adapters-per-round", type=int, default=10, help="default: 10, so 50 in all")
    parser.add_argument("--tokens", type=int, default=600, help="of each stream; default: 600")
    parser.add_argument(
        "--num-threads",
        type=int,
        default=max(1, (os.cpu_count() or 1) - 1),
        help="of the engine; default: all cores but one, which the storm's work has to itself",
    )
    parser.add_argument(
        "--adapters",
        type=Path,
        default=Path(__file__).parents[1] / "adapters",
        help="folder of the three domains (default: the source tree's)",
    )
    return parser.parse_args(arguments)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
