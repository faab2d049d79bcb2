"""`python -m benchmarks.cpu`: Loraplex on a CPU against transformers, PEFT and itself, in one run on the same weights.

SmolLM2-135M and the three shipped adapters; prompts of 64 tokens; greedy; every row generates a fixed number of tokens.
Each system has a process of its own; those that are compared take turns, round after round, and a ratio is the median
over rounds. Definitions (docs/benchmarks.md says how to read them):

mixed_vs_peft_8, _32    decode tokens/s of our int8 engine with the three adapters mixed over 8 or 32 rows, over
                        that of PEFT's mixed batch (`generate(adapter_names=…)`) in bf16 or fp32, whichever is faster
single_vs_transformers  tokens/s of one stream of the base, prefill included: our int8 engine over `generate` in bf16
int8_vs_bf16_8          decode tokens/s of the base at 8 rows: our engine in int8 over our engine in bf16
int8_bytes_ratio        bytes of the resident base weights: int8 over bf16
served_vs_engine_32     tokens/s, prefill included: 32 streams over gRPC (real server and real client, each in its own
                        process on the same cores) over the bare engine with the same rows

Decode tokens/s count only the steps in which every row gets one token and nothing is prefilled.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.builders import Packages, builders
from benchmarks.plan import MAX_ROWS, PROMPT_TOKENS, QUICK_PROMPT_TOKENS, Comparison, comparisons
from benchmarks.report import Results, document, table
from benchmarks.served import SERVER_ARGUMENTS
from benchmarks.subject import SubjectProcess
from benchmarks.workload import adapter_packages, add_adapters_option, read_prompts
from loraplex_cli.demo.server_process import running_server
from loraplex_server.base.resolve import resolve_base
from loraplex_server.tokenizer import BaseTokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    started_s = time.monotonic()
    base = resolve_base(None)
    packages = adapter_packages(options.adapters)
    prompt_tokens = QUICK_PROMPT_TOKENS if options.quick else PROMPT_TOKENS
    prompts = read_prompts(BaseTokenizer(base), options.adapters, prompt_tokens, MAX_ROWS)
    plan = comparisons(prompts, quick=options.quick)
    with _subjects(base, packages) as subjects:
        results = _measure(plan, subjects, started_s)
        facts = {name: subject.facts for name, subject in subjects.items()}
    environment = _environment(prompt_tokens, time.monotonic() - started_s)
    report = document(results, facts, environment)
    print(table(report), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(report))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument(
        "--quick", action="store_true", help="one short round of everything: does it run, not how fast"
    )
    add_adapters_option(parser)
    return parser.parse_args(arguments)


@contextmanager
def _subjects(base: Path, packages: Packages) -> Iterator[dict[str, SubjectProcess]]:
    """Every system, loaded, in its own process; they wait asleep for their turns."""
    with ExitStack() as stack:
        _say("starting the server")
        server = stack.enter_context(running_server(SERVER_ARGUMENTS))
        subjects = {}
        for name, build in builders(base, packages, server.target).items():
            _say(f"loading {name}")
            subjects[name] = stack.enter_context(SubjectProcess(name, build))
            subjects[name].wait_until_ready()
        yield subjects


def _measure(plan: Sequence[Comparison], subjects: Mapping[str, SubjectProcess], started_s: float) -> Results:
    results: Results = {}
    for comparison in plan:
        for name in comparison.subjects:
            subjects[name].run(comparison.warm_up)
        runs = results[comparison.name] = {name: [] for name in comparison.subjects}
        for round_number in range(1, comparison.num_rounds + 1):
            for name in comparison.subjects:
                runs[name].append(subjects[name].run(comparison.work))
            rates = ", ".join(f"{name} {runs[name][-1].total_rate:.0f}" for name in comparison.subjects)
            _say(
                f"[{time.monotonic() - started_s:3.0f} s] {comparison.name}, round {round_number} of "
                f"{comparison.num_rounds}: {rates} tokens/s"
            )
    return results


def _environment(prompt_tokens: int, seconds: float) -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "prompt_tokens": prompt_tokens,
        "seconds": round(seconds),
        "versions": {name: version(name) for name in ("loraplex", "torch", "transformers", "peft", "grpcio")},
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
