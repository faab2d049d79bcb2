"""`python -m benchmarks.loadtest`: what one generator process can do, and what the load tester says of a real server.

capacity   500 streams at once from one generator process against the fake server; messages per second, lag, CPU
questions  SmolLM2 on this machine's CPU, the shipped adapters and variants of them:
           concurrency   closed loops of 1, 4, 8 and 16 users
           adapters      8 users who name the base, or 1, 4 or 8 adapters
           cold          12 adapters on a server with 4 slots: one user, then one request per second
           precision     4 users, the same load on servers of several precisions
           neighbour     the ready scenario of that name, at rates that a CPU can bear
           training      train-while-serving: the scenario's own job from a third of the run on
           saturation    the largest rate that meets the ready scenario's objectives

Rounds are repeated and taken in turn; a figure is the median over rounds of each round's median, since other work on
the machine slows whole rounds. docs/loadtest.md has the answers of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from loraplex_cli.demo.server_process import running_server
from loraplex_loadtest.conditions import part_of
from loraplex_loadtest.environment import environment
from loraplex_loadtest.fake.law import LatencyLaw
from loraplex_loadtest.fake.process import fake_server
from loraplex_loadtest.result import result_document, samples_of
from loraplex_loadtest.run import run_scenario
from loraplex_loadtest.saturation.saturate import saturate
from loraplex_loadtest.saturation.search import SearchSettings
from loraplex_loadtest.scenario import find_scenario, make_scenario, of_duration, read_scenario
from loraplex_loadtest.targets.target import TargetAddress, TargetKind

ROOT = Path(__file__).parents[1]
DOMAINS = ("ecommerce", "education", "finance")
PACKAGE = ROOT / "adapters/finance/package"
USERS = (1, 4, 8, 16)
ADAPTER_COUNTS = (1, 4, 8)
PRECISIONS = ("bf16", "nf4", "int8")  # int8 needs a processor with AMX or AVX-512 VNNI
_TRAINING_RATE = 1.0  # requests per second, which leave a small processor some time
_FIGURES = ("ttft", "warm_ttft", "cold_ttft", "tpot", "e2e", "adapter_load")


def measure_capacity(streams: int = 500, seconds: float = 10.0) -> dict[str, Any]:
    """So many streams at once, each of a token every 100 ms: what arrives, and is the generator on time?"""
    law = LatencyLaw(first_token_s=0.1, per_token_s=0.1)
    tokens = 50
    scenario = make_scenario(
        {
            "name": "capacity",
            "traffic": [
                {
                    "arrivals": {
                        "kind": "constant",
                        "rate": streams / (law.first_token_s + law.per_token_s * (tokens - 1)),
                        "duration_s": seconds,
                    },
                    "adapters": {"mix": {"kind": "uniform"}},
                    "answer": {"length": {"kind": "fixed", "tokens": tokens}},
                }
            ],
        }
    )
    with fake_server(law) as fake:
        document = result_document(asyncio.run(run_scenario(scenario, fake.target())))
    offered = streams / (law.first_token_s + law.per_token_s * (tokens - 1)) * tokens
    steady = [value for value in document["timeline"]["tokens_per_s"] if value > 0.8 * offered]
    return {
        "streams_at_once": document["generator"]["peak_streams"],
        "messages_per_s": round(statistics.median(steady)) if steady else 0,
        "messages_per_s_due": round(offered),
        "cpu_share": document["generator"]["cpu_share"],
        "send_lag_p99_s": document["generator"]["send_lag_p99_s"],
        "is_valid": document["is_valid"],
        "reconciliation_difference": document["reconciliation"]["difference"],
        "tpot_p50_s": part_of(document["figures"]["tpot"], "p50"),
    }


def measure_questions(seconds: float, rounds: int, wanted: Sequence[str]) -> dict[str, Any]:
    """All answers; `seconds` is the length of one run."""
    found: dict[str, Any] = {}
    if "concurrency" in wanted:
        with _server("auto") as address:
            cases = {str(users): _closed(users, DOMAINS, seconds) for users in USERS}
            found["concurrency"] = _in_turn(cases, address, rounds)
    if "adapters" in wanted:
        with _server("auto") as address:
            names = [f"variant-{number:04d}" for number in range(max(ADAPTER_COUNTS))]
            _register_variants(address, len(names))
            cases = {str(count): _closed(8, names[:count], seconds) for count in ADAPTER_COUNTS}
            cases["base"] = _closed(8, ["base"], seconds)
            found["adapters"] = _in_turn(cases, address, rounds)
    if "cold" in wanted:
        found["cold"] = _measure_cold(seconds, rounds)
    if "precision" in wanted:
        found["precision"] = {}
        for precision in PRECISIONS:
            with _server(precision) as address:
                case = {precision: _closed(4, DOMAINS, seconds)}
                found["precision"] |= _in_turn(case, address, rounds)
    if "neighbour" in wanted:
        with _server("auto") as address:
            steps = [{"rate": rate, "duration_s": 30} for rate in (0, 0.7, 0)]
            changes = {"traffic.0.arrivals.rate": 0.5, "traffic.1.arrivals.steps": steps}
            scenario = of_duration(_read("noisy-neighbour", changes), 3 * seconds)
            found["neighbour"] = _medians([_neighbour(scenario, address) for _ in range(rounds)])
    if "training" in wanted:
        with _server("auto", "--training", "--training-threads", "1") as address:
            found["training"] = [_training(6 * seconds, address) for _ in range(rounds)]
    if "saturation" in wanted:
        with _server("auto") as address:
            found["saturation"] = [_saturation(seconds, address) for _ in range(rounds)]
    return found


def _measure_cold(seconds: float, rounds: int) -> dict[str, Any]:
    """One user alone, so that nothing but the adapter is waited for; then many requests for few slots."""
    found: dict[str, Any] = {}
    for memory, options in (("host memory", ()), ("disk", ("--host-cache-bytes", str(2**20)))):
        with _server("auto", "--adapter-slots", "4", *options) as address:
            names = [f"variant-{number:04d}" for number in range(12)]
            _register_variants(address, len(names))
            cases = {
                f"one user, slot, {memory}": _closed(1, names[:1], seconds),
                f"one user, from {memory}": _closed(1, names, seconds),
            }
            if memory == "host memory":
                storm = _read(
                    "cold-storm", {"setup.variants": 0, "traffic.0.adapters.names": names}, rate=1.0
                )
                cases["one request/s, 12 adapters, 4 slots"] = of_duration(storm, seconds)
            found |= _in_turn(cases, address, rounds)
    return found


@contextmanager
def _server(precision: str, *more: str) -> Iterator[TargetAddress]:
    """A server of its own with the three domains."""
    from loraplex_client import LoraplexClient

    # One thread: threads that wait for each other suffer out of proportion where other work takes their core.
    arguments = ["--device", "cpu", "--num-threads", "1", "--quantization", precision, *more]
    with running_server(arguments) as serving:
        with LoraplexClient(serving.target, timeout_s=300) as client:
            for domain in DOMAINS:
                client.adapters.upload(domain, ROOT / "adapters" / domain / "package")
        yield TargetAddress(TargetKind.LORAPLEX, serving.target, serving.metrics_url)


def _register_variants(address: TargetAddress, count: int) -> None:
    scenario = make_scenario(
        {
            "name": "register",
            "traffic": [
                {
                    "arrivals": {"kind": "constant", "rate": 1, "duration_s": 1},
                    "adapters": {"names": ["base"]},
                }
            ],
            "setup": {"package": str(PACKAGE), "variants": count, "prefix": "variant", "keep": True},
        }
    )
    asyncio.run(run_scenario(scenario, address))


def _closed(users: int, names: Sequence[str], seconds: float) -> Any:
    return make_scenario(
        {
            "name": f"closed-{users}",
            "traffic": [
                {
                    "arrivals": {"kind": "closed", "users": users, "duration_s": seconds},
                    "adapters": {"names": list(names), "mix": {"kind": "round_robin"}},
                    "prompt": {"length": {"kind": "fixed", "tokens": 32}},
                    "answer": {"length": {"kind": "fixed", "tokens": 24}},
                }
            ],
            "window": {"warm_up_s": seconds * 0.1},
        }
    )


def _read(name: str, changes: Mapping[str, Any], rate: float | None = None) -> Any:
    values = dict(changes)
    if rate is not None:
        values["traffic.0.arrivals.rate"] = rate
    return read_scenario(find_scenario(name), values)


def _run(scenario: Any, address: TargetAddress) -> dict[str, Any]:
    return result_document(asyncio.run(run_scenario(scenario, address)))


def _in_turn(cases: Mapping[str, Any], address: TargetAddress, rounds: int) -> dict[str, Any]:
    """Case -> figures, each the median over the rounds."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, scenario in cases.items():
            runs[name].append(_figures(_run(scenario, address)))
            print(name, runs[name][-1], flush=True)
    return {name: _medians(found) for name, found in runs.items()}


def _figures(document: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {
        "tokens_per_s": document["rates"]["tokens_per_s"],
        "requests": document["rates"]["requests"],
        "error_rate": document["rates"]["error_rate"],
        "counter_difference": document["reconciliation"]["difference"],
        "send_lag_p99_s": document["generator"]["send_lag_p99_s"],
    }
    for name in _FIGURES:
        figure = document["figures"][name]
        if figure["n"]:
            found[f"{name}_n"] = figure["n"]
            found[f"{name}_mean_s"] = figure["mean"]
        if (median := part_of(figure, "p50")) is not None:
            found[f"{name}_p50_s"] = median
    return found


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = sorted(set[str]().union(*rounds))
    return {key: _round(statistics.median([one[key] for one in rounds if key in one])) for key in keys}


def _neighbour(scenario: Any, address: TargetAddress) -> dict[str, float]:
    """What the victim felt before, during and after: medians by thirds of the run."""
    outcome = asyncio.run(run_scenario(scenario, address))
    samples = samples_of(outcome)
    third_s = samples.window_s[1] / 3
    found: dict[str, float] = {}
    for number, name in enumerate(("before", "during", "after")):
        inside = (samples.intended_s >= number * third_s) & (samples.intended_s < (number + 1) * third_s)
        chosen = inside & (samples.traffic == "victim")
        found[f"{name}_n"] = int(chosen.sum())
        found[f"{name}_ttft_p50_s"] = _median(samples.ttft_s[chosen])
        found[f"{name}_tpot_p50_s"] = _median(samples.tpot_s[chosen])
        found[f"{name}_error_rate"] = 1 - float(samples.is_ok[chosen].mean())
    print("neighbour", found, flush=True)
    return found


def _training(seconds: float, address: TargetAddress) -> dict[str, Any]:
    """What the streams felt before the job, and in each of its stages that the load was long enough to meet."""
    job = {"kind": "train", "at_s": seconds / 3}
    changes = {"disturbances": [job], "traffic.0.arrivals.duration_s": seconds}
    outcome = asyncio.run(run_scenario(_read("train-while-serving", changes, rate=_TRAINING_RATE), address))
    samples, document = samples_of(outcome), result_document(outcome)
    (happened,) = outcome.happened
    begins = {
        "before": 0.0,
        "starting": happened.began_s,
        **{mark.what: mark.at_s for mark in happened.marks},
    }
    ends = [*list(begins.values())[1:], happened.ended_s]
    found: dict[str, Any] = {"job": happened.told.partition(": ")[2]}
    for (name, start_s), end_s in zip(begins.items(), ends, strict=True):
        chosen = (samples.intended_s >= start_s) & (samples.intended_s < end_s)
        if not chosen.any():
            continue
        found[name] = {
            "from_s": _round(start_s),
            "n": int(chosen.sum()),
            "ttft_p50_s": _round(_median(samples.ttft_s[chosen])),
            "tpot_p50_s": _round(_median(samples.tpot_s[chosen])),
        }
    found |= {
        "error_rate": document["rates"]["error_rate"],
        "counter_difference": document["reconciliation"]["difference"],
        "send_lag_p99_s": _round(document["generator"]["send_lag_p99_s"]),
        "is_valid": document["is_valid"],
    }
    print("training", found, flush=True)
    return found


def _saturation(trial_s: float, address: TargetAddress) -> dict[str, Any]:
    """A coarse search: a trial of so many seconds, to a fifth of the rate."""
    settings = SearchSettings(start_rate=1.0, trial_s=trial_s, min_goodput=0.9, tolerance=0.2)
    scenario = _read(
        "saturation", {"traffic.0.prompt.length.tokens": 32, "traffic.0.answer.length.tokens": 24}
    )
    found = asyncio.run(saturate(scenario, address, settings, lambda trial: print(trial, flush=True)))
    return {"objectives": scenario.objectives.model_dump(), **found.model_dump(mode="json")}


def _median(values: Any) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("inf")


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=["capacity", "questions"])
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {"environment": environment(), "seconds": asked.seconds, "rounds": asked.rounds}
    if "capacity" in asked.what:
        found["capacity"] = measure_capacity()
    questions = ("concurrency", "adapters", "cold", "precision", "neighbour", "training", "saturation")
    wanted = questions if "questions" in asked.what else tuple(set(questions) & set(asked.what))
    if wanted:
        found["questions"] = measure_questions(asked.seconds, asked.rounds, wanted)
    text = json.dumps(found, indent=1)
    if asked.out:
        asked.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
