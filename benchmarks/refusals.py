"""`python -m benchmarks.refusals`: how soon, and with how much memory, registrations are refused that must be.

A real server with the resident base, SmolLM2-135M, answers a stream of the base and one of each of three adapters,
again and again. Meanwhile every case of tests/support/bad_registrations.py (rows 5 to 15 of the project's list of
faults) is tried, `--rounds` times each: names, paths, URLs, pickles, damaged files, a million tensors, weights that are
not finite, ranks, other bases, digests, uploads without an end, quotas, ids and etags. Packages are made from a shipped
one, in fp32: 10 MB each. Client, server and streams share the machine.

seconds            from the first byte sent until the refusal, the upload of a package included (goal: below 1)
admission_peak_mb  largest resident memory of the admission process while a case ran, above what it had before it
                   (goal: at most its budget, admission_memory_bytes)
front_end_growth_mb  of the server's front end over the whole list (goal: at most 64)
problems           cases that were taken, or refused otherwise than they must be; streams that another token came to

Exit code 0: every goal is met; 1: one is missed; 2: wrong options.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.process_memory import AdmissionPeak, resident_bytes
from benchmarks.workload import ADAPTERS, adapter_packages, add_adapters_option
from loraplex_client import LoraplexClient
from loraplex_server.base.fetch import DEFAULT_BASE_ID
from tests.integration.live_server import LiveServer, running_server
from tests.integration.streams import unchanged_streams
from tests.support.bad_registrations import SETTINGS, BadRegistration, all_cases

GOAL_S = 1.0
MAX_GROWTH_MB = 64.0
MEMORY_BUDGET_MB = 1024.0  # the server's own default
_MB = 1e6
_SERVER: dict[str, Any] = {"max_output_tokens": 1000, "max_context_tokens": 2048, "kv_cache_bytes": 2**28}


@dataclass
class Measured:
    """One case, over all rounds."""

    case: BadRegistration
    seconds: list[float]
    peaks_mb: list[float]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    with _packages(options.adapters) as packages, tempfile.TemporaryDirectory(prefix="lpx-refusals-") as home:
        settings = {
            **_SERVER,
            **SETTINGS,
            "quantization": options.quantization,
            "num_threads": options.num_threads,
        }
        with running_server(DEFAULT_BASE_ID, Path(home), adapter_roots=packages, **settings) as server:
            report = asyncio.run(_measure(server, packages, options))
    print(table(report), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(report))
    return 0 if report["verdict"] == "met" else 1


async def _measure(server: LiveServer, packages: Path, options: argparse.Namespace) -> dict[str, Any]:
    problems: list[str] = []
    with server.client(timeout_s=300) as client:
        for name in ADAPTERS:
            client.adapters.upload(name, packages / name)
        (place := packages / "bad").mkdir()
        cases = all_cases(client, server.target, ADAPTERS, packages, place)
        measured = [Measured(case, [], []) for case in cases]
        begin_bytes = resident_bytes(server.process.pid)
        try:
            async with unchanged_streams(server, ADAPTERS):
                for number in range(options.rounds):
                    for each in measured:
                        problems += await asyncio.to_thread(_try, each, client, server)
                    _say(f"round {number + 1} of {options.rounds}")
        except AssertionError as error:
            problems.append(f"a stream changed, or failed: {error}")
        growth_mb = (resident_bytes(server.process.pid) - begin_bytes) / _MB
    return _report(measured, problems, growth_mb, options)


def _try(measured: Measured, client: LoraplexClient, server: LiveServer) -> list[str]:
    """One case once; what is wrong with its refusal."""
    with AdmissionPeak(server.process.pid) as memory:
        began_s = time.monotonic()
        refusal = measured.case.refusal(client)
        measured.seconds.append(time.monotonic() - began_s)
    measured.peaks_mb.append(max(0, memory.peak_bytes - memory.begin_bytes) / _MB)
    problem = measured.case.problem_of(refusal)
    return [problem] if problem else []


def _report(
    measured: Sequence[Measured], problems: list[str], growth_mb: float, options: argparse.Namespace
) -> dict[str, Any]:
    slowest = max(max(each.seconds) for each in measured)
    peak_mb = max(max(each.peaks_mb) for each in measured)
    is_met = not problems and slowest < GOAL_S and growth_mb <= MAX_GROWTH_MB and peak_mb <= MEMORY_BUDGET_MB
    return {
        "verdict": "met" if is_met else "missed",
        "goal_seconds": GOAL_S,
        "slowest_seconds": round(slowest, 3),
        "median_seconds": round(statistics.median(s for each in measured for s in each.seconds), 3),
        "admission_peak_mb": round(peak_mb, 1),
        "front_end_growth_mb": round(growth_mb, 1),
        "problems": problems,
        "cases": [
            {
                "row": each.case.row,
                "case": each.case.title,
                "status": each.case.code.name,
                "reason": each.case.reason,
                "median_seconds": round(statistics.median(each.seconds), 3),
                "max_seconds": round(max(each.seconds), 3),
                "admission_peak_mb": round(max(each.peaks_mb), 1),
            }
            for each in measured
        ],
        "rounds": options.rounds,
        "streams": len(ADAPTERS) + 1,
        "quantization": options.quantization,
        "engine_threads": options.num_threads,
        "versions": {name: version(name) for name in ("loraplex", "torch", "grpcio")},
    }


def table(report: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'row':>3} {'case':<52}{'status and reason':<44}{'median':>8}{'max':>8}{'MB':>8}"]
    for case in report["cases"]:
        outcome = f"{case['status']} {case['reason']}"
        lines.append(
            f"{case['row']:>3} {case['case']:<52}{outcome:<44}{case['median_seconds']:>8.3f}"
            f"{case['max_seconds']:>8.3f}{case['admission_peak_mb']:>8.1f}"
        )
    lines += [f"{name}: {report[name]}" for name in ("slowest_seconds", "front_end_growth_mb", "verdict")]
    return "\n".join([*lines, *report["problems"]])


@contextmanager
def _packages(adapters: Path) -> Iterator[Path]:
    """A folder with the shipped packages in fp32, which what damages them can read."""
    with tempfile.TemporaryDirectory(prefix="lpx-packages-") as scratch:
        for name, package in adapter_packages(adapters).items():
            folder = Path(scratch) / name
            folder.mkdir()
            shutil.copyfile(package / "adapter_config.json", folder / "adapter_config.json")
            weights = {
                key: tensor.float()
                for key, tensor in load_file(package / "adapter_model.safetensors").items()
            }
            save_file(weights, folder / "adapter_model.safetensors")
        yield Path(scratch)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.refusals", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--rounds", type=int, default=3, help="of every case; default: 3")
    parser.add_argument("--quantization", default="int8", help="of the base; default: int8")
    parser.add_argument(
        "--num-threads",
        type=int,
        default=os.cpu_count() or 1,
        help="of the engine; default: all cores, as a server takes them, so that nothing is left for the checks",
    )
    add_adapters_option(parser)
    return parser.parse_args(arguments)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
