"""Runs -> ratios, a table for people and one JSON object for programs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.plan import ENGINE_BF16, ENGINE_INT8, PEFT_BF16, PEFT_FP32, SERVED, TRANSFORMERS
from benchmarks.subject import Facts
from benchmarks.workload import Run

Results = dict[str, dict[str, list[Run]]]
"""Comparison -> subject -> one Run per round."""

# Of llama-server on two such cores (docs/benchmarks.md): tokens/s of three adapters, prefill included.
LLAMA_SERVER_TOTAL = {1: 51.0, 8: 50.0, 32: 52.0}

GOALS = {
    "mixed_vs_peft_8": 3.0,
    "mixed_vs_peft_32": 3.0,
    "single_vs_transformers": 1.5,
    "int8_vs_bf16_8": 1.5,
    "served_vs_engine_32": 0.9,
}


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def as_json(self) -> dict[str, float]:
        return {"median": _round(self.median), "min": _round(self.low), "max": _round(self.high)}


def ratios(results: Results) -> dict[str, Spread]:
    """Each round's ratio, then the median of the rounds: what slows a whole round down cancels out."""
    found = {
        "served_vs_engine_32": _total_ratio(results["served_vs_engine_32"], SERVED, ENGINE_INT8),
        "served_vs_engine_8": _total_ratio(results["served_vs_engine_8"], SERVED, ENGINE_INT8),
        "served_vs_engine_1": _total_ratio(results["served_vs_engine_1"], SERVED, ENGINE_INT8),
        "single_vs_transformers": _total_ratio(results["single_vs_transformers"], ENGINE_INT8, TRANSFORMERS),
        "single_adapter_vs_peft": _total_ratio(results["single_adapter_vs_peft"], ENGINE_INT8, PEFT_BF16),
        "int8_vs_bf16_8": _decode_ratio(results["int8_vs_bf16_8"], ENGINE_INT8, ENGINE_BF16),
        "int8_vs_bf16_8_mixed": _decode_ratio(results["int8_vs_bf16_8_mixed"], ENGINE_INT8, ENGINE_BF16),
    }
    for name in ("mixed_vs_peft_8", "mixed_vs_peft_32"):
        found[name] = _decode_ratio(results[name], ENGINE_INT8, faster_peft(results[name]))
    return found


def faster_peft(runs: Mapping[str, list[Run]]) -> str:
    """The PEFT precision whose median decode is faster."""
    return max((PEFT_BF16, PEFT_FP32), key=lambda name: statistics.median(r.decode_rate for r in runs[name]))


def document(results: Results, facts: Mapping[str, Facts], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object: the six ratios first, everything behind them after."""
    found = ratios(results)
    int8_bytes, bf16_bytes = (int(facts[name]["weight_bytes"]) for name in (ENGINE_INT8, ENGINE_BF16))
    served = {rows: _served_total(results, rows) for rows in LLAMA_SERVER_TOTAL}
    return {
        **{name: _round(found[name].median) for name in GOALS},
        "int8_bytes_ratio": _round(int8_bytes / bf16_bytes),
        "ratios": {name: spread.as_json() for name, spread in sorted(found.items())},
        "faster_peft": {name: faster_peft(results[name]) for name in ("mixed_vs_peft_8", "mixed_vs_peft_32")},
        "served_total_tokens_per_s": {str(rows): spread.as_json() for rows, spread in served.items()},
        "served_vs_llama_server": {
            str(rows): _round(spread.median / LLAMA_SERVER_TOTAL[rows]) for rows, spread in served.items()
        },
        "first_tokens_as_peft_32": _round(_first_token_agreement(results["mixed_vs_peft_32"])),
        "raw": {
            comparison: {subject: _raw(runs) for subject, runs in by_subject.items()}
            for comparison, by_subject in results.items()
        },
        "subjects": dict(facts),
        "environment": dict(environment),
    }


def table(report: Mapping[str, Any]) -> str:
    """For people."""
    lines = [f"{'ratio':<26}{'median':>8}{'min':>8}{'max':>8}   goal"]
    for name, spread in report["ratios"].items():
        goal = f">= {GOALS[name]:g}" if name in GOALS else ""
        lines.append(f"{name:<26}{spread['median']:8.2f}{spread['min']:8.2f}{spread['max']:8.2f}   {goal}")
    lines.append(f"{'int8_bytes_ratio':<26}{report['int8_bytes_ratio']:8.2f}{'':16}   <= 0.6")
    lines += ["", f"{'tokens/s':<26}{'subject':<20}{'decode':>16}{'with prefill':>16}"]
    for comparison, by_subject in report["raw"].items():
        for subject, figures in by_subject.items():
            decode, total = _shown(figures["decode_tokens_per_s"]), _shown(figures["total_tokens_per_s"])
            lines.append(f"{comparison:<26}{subject:<20}{decode:>16}{total:>16}")
    return "\n".join(lines)


def _total_ratio(runs: Mapping[str, list[Run]], ours: str, theirs: str) -> Spread:
    return Spread.of([a.total_rate / b.total_rate for a, b in zip(runs[ours], runs[theirs], strict=True)])


def _decode_ratio(runs: Mapping[str, list[Run]], ours: str, theirs: str) -> Spread:
    return Spread.of([a.decode_rate / b.decode_rate for a, b in zip(runs[ours], runs[theirs], strict=True)])


def _served_total(results: Results, num_rows: int) -> Spread:
    return Spread.of([run.total_rate for run in results[f"served_vs_engine_{num_rows}"][SERVED]])


def _first_token_agreement(runs: Mapping[str, list[Run]]) -> float:
    """Share of rows whose first token is the same in our int8 engine and in PEFT in fp32."""
    ours, theirs = runs[ENGINE_INT8][0].first_token_ids, runs[PEFT_FP32][0].first_token_ids
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _raw(runs: Sequence[Run]) -> dict[str, Any]:
    decode = [run.decode_rate for run in runs if run.decode_s]
    return {
        "decode_tokens_per_s": Spread.of(decode).as_json() if decode else None,
        "total_tokens_per_s": Spread.of([run.total_rate for run in runs]).as_json(),
        "rounds": len(runs),
    }


def _shown(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "-"
    return f"{spread['median']:.0f} ({spread['min']:.0f}-{spread['max']:.0f})"


def _round(value: float) -> float:
    """Four significant digits: more would be noise."""
    return value if value == 0 else round(value, 3 - math.floor(math.log10(abs(value))))
