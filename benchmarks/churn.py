"""`python -m benchmarks.churn`: what streams feel while other adapters are registered, loaded and evicted in a storm.

A real server and 16 streams. Every round has them decode twice from the same beginning: once in quiet, once through a
storm that registers and warms adapters that were never seen before, five at a time, with fewer slots than adapters, so
that each evicts another; those that were evicted are deleted. Tokens are compared at equal places of their streams,
for a step grows slower with the context. When the storm is over, and the streams still decode, the last adapters are
asked for one token each, which are cold again by then, once for each length of prompt. Server, streams and storm share
the machine; the storm's client has the lowest priority, for its work is another machine's.

The base is SmolLM2-135M with the shipped adapters and variants of them; or, with --shape, one of random weights in a
named shape, which is written to a folder first, with eight adapters of rank 16 for the streams and newcomers of --rank.

itl_p99_ratio     99th percentile of the times between two tokens of a stream, in the storm / in quiet, all rounds
                  together (goal: at most 1.15; with a named shape on a GPU 1.10)
itl_p50_ratio     the same of the median: what golden prompts and copies take of the throughput
load_seconds      from asking for a registered adapter until it is in its slot
register_seconds  from the first byte sent until the version is registered, golden prompts included
first_tokens      a row for each length of prompt, medians
  cold_first_token_ms      from a request for an adapter on disk alone to its token
  warm_first_token_ms      then from one with another prompt of that length, of which no more is in the prefix cache
  repeated_first_token_ms  then from one with the latter prompt again, which mostly is
  cold_parts_ms, warm_parts_ms  way: on the wire and in the front end; queue: until the first step that computes it,
                           but for adapter: until its adapter was in a slot; prefill: from that step to the token
  read_ms, copied_in_ms    of adapter: from disk, and what was left to copy then, the wait for a step included
moved_bytes       within the arena, to join its free parts
copy_ms           on a GPU: bytes of an adapter ÷ the measured bandwidth of a copy from pinned memory
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.churn_setting import Setting, prepare
from benchmarks.churn_storm import Source, Storm, run_storm
from benchmarks.churn_streams import Gap, StreamsProcess
from benchmarks.churn_visits import Visits, visit_and_delete
from benchmarks.shapes import SHAPES
from benchmarks.versions import versions
from benchmarks.workload import add_adapters_option
from loraplex_cli.demo.server_process import ServerAddress, running_server
from loraplex_client import LoraplexClient

NUM_STREAMS = 16
GOAL, GPU_SHAPE_GOAL = 1.15, 1.10
_BEGAN_S = time.monotonic()


@dataclass
class Measured:
    """What was seen, over all rounds. Seconds."""

    quiet: list[float] = field(default_factory=list)
    storm: list[float] = field(default_factory=list)
    storms: list[Storm] = field(default_factory=list)
    visits: dict[int, Visits] = field(default_factory=dict)  # by tokens of their prompts
    evictions: int = 0
    moved_bytes: int = 0
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
    measured: dict[Source, Measured] = {source: Measured() for source in options.source}
    with tempfile.TemporaryDirectory(prefix="loraplex-churn-", dir=options.work_dir) as folder:
        setting = prepare(options, Path(folder), _say)
        _say("starting the server")
        with running_server(setting.server_arguments, options.server_log) as server:
            _measure(server, setting, options, measured)
    copy_ms = None
    if options.device == "cuda":
        from benchmarks.engine_churn import pinned_bandwidth

        copy_ms = setting.newcomer_bytes / pinned_bandwidth(setting.newcomer_bytes) * 1e3
    for source, found in measured.items():
        report = _report(found, source, setting, options, copy_ms)
        print(_table(report), file=sys.stderr if options.json else sys.stdout)
        if options.json:
            print(json.dumps(report))
    return 0


def _measure(
    server: ServerAddress, setting: Setting, options: argparse.Namespace, measured: dict[Source, Measured]
) -> None:
    _say("registering the adapters of the streams")
    with LoraplexClient(server.target, timeout_s=300.0) as client:
        for name, package in setting.resident.items():
            client.adapters.upload(name, package)
    rounds = [(source, found) for source, found in measured.items() for _ in range(options.rounds)]
    for number, (source, found) in enumerate(rounds):
        before = _moves(server)
        _round(server.target, setting, source, number * options.adapters_per_round, options, found)
        after = _moves(server)
        found.evictions += after[0] - before[0]
        found.moved_bytes += after[1] - before[1]
        _say(f"round {number + 1} of {len(rounds)}: p99 storm / quiet {found.round_ratios[-1]:.3f}")


def _round(
    target: str,
    setting: Setting,
    source: Source,
    first: int,
    options: argparse.Namespace,
    measured: Measured,
) -> None:
    names = list(setting.resident)
    adapters = [names[index % len(names)] for index in range(NUM_STREAMS)]
    newcomers = setting.newcomers[first : first + options.adapters_per_round]
    with StreamsProcess(target, adapters, options.tokens, is_endless=False) as streams:
        _say("streams in quiet")
        quiet = streams.gaps()
    with StreamsProcess(target, adapters, options.tokens, is_endless=True) as streams:
        _say(f"streams in a storm of {len(newcomers)} adapters, source: {source}")
        storm = run_storm(target, newcomers, first, source)
        _say(f"the storm took {storm.ended_s - storm.began_s:.1f} s")
        visits = visit_and_delete(target, storm.kept, options.visit_prompt)
        stormy = streams.gaps()
    measured.add(quiet, stormy, storm)
    for prompt_tokens, found in visits.items():
        measured.visits.setdefault(prompt_tokens, Visits()).add(found)


def _moves(server: ServerAddress) -> tuple[int, int]:
    """Evictions, and bytes moved within the arena, since the server began."""
    names = ("loraplex_adapter_evictions_total", "loraplex_adapter_arena_moved_bytes_total")
    evictions, moved_bytes = (_counter(server.metrics_url, name) for name in names)
    return evictions, moved_bytes


def _counter(metrics_url: str, name: str) -> int:
    """Sum over its labels."""
    with urllib.request.urlopen(metrics_url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)))


def _report(
    measured: Measured, source: Source, setting: Setting, options: argparse.Namespace, copy_ms: float | None
) -> dict[str, Any]:
    quiet, storm = (
        {f"p{p}": _ms(percentile(gaps, p)) for p in (50, 90, 99)} for gaps in (measured.quiet, measured.storm)
    )
    is_gpu_shape = options.device == "cuda" and options.shape is not None
    return {
        "itl_p99_ratio": round(percentile(measured.storm, 99) / percentile(measured.quiet, 99), 3),
        "itl_p50_ratio": round(percentile(measured.storm, 50) / percentile(measured.quiet, 50), 3),
        "round_p99_ratios": [round(ratio, 3) for ratio in measured.round_ratios],
        "goal": GPU_SHAPE_GOAL if is_gpu_shape else GOAL,
        "itl_quiet_ms": quiet,
        "itl_storm_ms": storm,
        "register_seconds": _spread([s for storm in measured.storms for s in storm.register_s]),
        "load_seconds": _spread([s for storm in measured.storms for s in storm.load_s]),
        "storm_seconds": [round(storm.ended_s - storm.began_s, 1) for storm in measured.storms],
        "evictions": measured.evictions,
        "moved_bytes": measured.moved_bytes,
        **({} if copy_ms is None else {"copy_ms": round(copy_ms, 2)}),
        "first_tokens": [
            {"prompt_tokens": prompt_tokens, **visits.report(copy_ms)}
            for prompt_tokens, visits in measured.visits.items()
        ],
        "streams": NUM_STREAMS,
        "adapters": options.rounds * options.adapters_per_round,
        "adapter_bytes": setting.newcomer_bytes,
        "source": source,
        "engine_threads": options.num_threads if options.device == "cpu" else 1,
        **setting.described,
        "versions": {**versions(), "grpcio": version("grpcio")},
    }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 3), "max": round(max(seconds), 3)}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _table(report: dict[str, Any]) -> str:
    verdict = "met" if report["itl_p99_ratio"] <= report["goal"] else "missed"
    lines = [
        f"between tokens, quiet: {report['itl_quiet_ms']} ms",
        f"between tokens, storm: {report['itl_storm_ms']} ms",
        f"p99 storm / quiet: {report['itl_p99_ratio']} (goal {report['goal']}: {verdict})",
        f"by round: {report['round_p99_ratios']}",
        f"median storm / quiet: {report['itl_p50_ratio']}",
        f"registered in {report['register_seconds']} s, loaded in {report['load_seconds']} s",
        f"evicted: {report['evictions']}, moved within the arena: {report['moved_bytes'] / 2**20:.0f} MiB",
    ]
    for row in report["first_tokens"]:
        if row["cold_visits"]:
            goal = f" (goal {row['cold_first_token_goal_ms']})" if "cold_first_token_goal_ms" in row else ""
            lines.append(
                f"first token, prompts of {row['prompt_tokens']} tokens, cold: {row['cold_first_token_ms']} ms{goal}, "
                f"warm: {row['warm_first_token_ms']} ms"
            )
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--adapters-per-round", type=int, default=10, help="default: 10, so 50 in all")
    parser.add_argument("--tokens", type=int, default=600, help="of each completion; default: 600")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--quantization", help="default: int8 on a CPU, nf4 on a GPU")
    parser.add_argument(
        "--base", help="folder of the base that the shipped adapters are for; default: the server's"
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), help="of a base of random weights")
    parser.add_argument(
        "--rank",
        type=int,
        nargs="+",
        default=[64],
        help="of the newcomers of a random base, in turn: several make holes of all sizes in the arena; default: 64",
    )
    parser.add_argument(
        "--visit-prompt",
        type=int,
        nargs="+",
        default=[8],
        help="tokens of the prompts of cold requests, a row of first tokens for each; default: 8",
    )
    parser.add_argument(
        "--source",
        choices=["upload", "folder"],
        nargs="+",
        default=["upload"],
        help="of the newcomers, with rounds and a report for each; default: upload",
    )
    parser.add_argument("--work-dir", type=Path, help="where bases and adapters are written; default: TMPDIR")
    parser.add_argument("--server-log", type=Path, help="keep the server's log here")
    parser.add_argument(
        "--num-threads",
        type=int,
        default=max(1, (os.cpu_count() or 1) - 1),
        help="of the engine on a CPU; default: all cores but one, which the storm's work has to itself",
    )
    add_adapters_option(parser)
    return parser.parse_args(arguments)


def _say(message: str) -> None:
    print(f"[{time.monotonic() - _BEGAN_S:6.1f} s] {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
