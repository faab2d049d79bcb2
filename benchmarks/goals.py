"""`python -m benchmarks.goals`: the goals beside what was measured, on a GPU and on CPUs, from benchmarks/results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.churn import GOAL, GPU_SHAPE_GOAL

_RESULTS = Path(__file__).parent / "results"
_VLLM = {1: (3.9, 5.9), 8: (4.7, 12.5), 32: (5.6, 13.3), 128: (7.4, 17.8)}
"""Rows -> ms a step of vLLM 0.26 with 8 adapters on such a card, in fp8 and in NF4."""


@dataclass(frozen=True, slots=True)
class Row:
    """One goal."""

    what: str
    goal: float
    figure: float | None  # None: not measured
    at_most: bool = True
    unit: str = ""

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return "not measured"
        return "met" if (self.figure <= self.goal if self.at_most else self.figure >= self.goal) else "missed"


def rows(products: dict[str, Any], runs: dict[str, Any]) -> Iterator[Row]:
    """Every goal, in the order of the plan."""
    yield from _product_rows(products)
    nf4, int8, bf16 = (runs.get(name, {}) for name in ("nf4", "int8", "bf16"))
    for name, figures, goals in (
        ("NF4", nf4, {1: 2.6, 8: 3.0, 32: 3.8, 128: 7.0}),
        ("INT8", int8, {1: 2.9, 8: 3.1, 32: 3.4, 128: 5.6}),
    ):
        for count, goal in goals.items():
            figure = figures.get(f"decode_ms_8_adapters_{count}_rows")
            yield Row(f"{name} decode step, 8 adapters, {_many(count, 'row')}", goal, figure, unit="ms")
    for count, (fp8, four_bit) in _VLLM.items():
        ours = nf4.get(f"decode_ms_8_adapters_{count}_rows")
        ahead = fp8 / ours if ours else None
        yield Row(
            f"vLLM's fp8 step ÷ our NF4 step, {_many(count, 'row')}", 1.0, ahead, at_most=False, unit="×"
        )
        ahead = four_bit / ours if ours else None
        yield Row(
            f"vLLM's NF4 step ÷ our NF4 step, {_many(count, 'row')}", 3.0, ahead, at_most=False, unit="×"
        )
    for count in (1, 8, 32):
        key = f"decode_ms_0_adapters_{count}_rows"
        yield Row(
            f"INT8 step against our bf16 step, {_many(count, 'row')}", 0.7, _ratio(int8, bf16, key), unit="×"
        )
    yield Row("INT8 base bytes against bf16", 0.55, _ratio(int8, bf16, "weight_bytes"), unit="×")
    for count, goal in ((1, 0.05), (8, 0.10), (32, 0.20)):
        figure = nf4.get(f"lora_price_{count}")
        yield Row(
            f"LoRA's price, {_many(count, 'mixed-rank adapter')}, 32 rows",
            goal,
            figure,
        )
    yield Row(
        "prefill, NF4, 8 adapters, 2048 tokens",
        25_000,
        nf4.get("prefill_tokens_per_second_8_adapters"),
        at_most=False,
        unit="tokens/s",
    )
    peft = nf4.get("peft_decode_ms_8_adapters_32_rows")
    ours = nf4.get("decode_ms_8_adapters_32_rows")
    ratio = peft / ours if peft and ours else None
    yield Row("against PEFT, NF4, 32 rows", 60, ratio, at_most=False, unit="×")
    idle = [value for key, value in nf4.items() if key.startswith("idle_share_8_adapters")]
    yield Row("device idle between decode steps, worst", 0.05, max(idle, default=None))


def stream_rows(streams: Iterable[Path]) -> Iterator[Row]:
    """Of reports of `benchmarks.engine_stream`, one for each number of rows; of one that is not there its name."""
    for path in streams:
        report = _read(path)
        for stream in report.get("streams") or [{}]:
            how = f"begun {stream['start']}, >= {report['min_prefill_rows']} rows" if stream else path.stem
            yield Row(f"1,000 adapters ÷ 8, {how}", 0.9, stream.get("ratio"), at_most=False, unit="×")


def churn_rows(churn: dict[str, Any]) -> Iterator[Row]:
    """Of `benchmarks.engine_churn`: what cold adapters of rank 64 cost those that decode, and themselves."""
    for row in churn.get("rows") or [{}]:
        prompt = f", prompt {row['arrival_prompt']}" if row else ""
        yield Row(f"between tokens, p99: cold / quiet{prompt}", 1.10, row.get("itl_p99_ratio"), unit="×")
        allowed = row["warm_first_token_ms"] + churn["copy_ms"] + 20 if row else 0.0
        cold = row.get("cold_first_token_ms")
        yield Row(f"first token of a cold adapter{prompt}", round(allowed, 1), cold, unit="ms")


def server_rows(churn: dict[str, Any], storm: dict[str, Any]) -> Iterator[Row]:
    """Of `benchmarks.churn --shape`: a whole server, in which adapters of rank 64 are registered as well.

    storm   a run with more adapters
    """
    for run in (churn, storm):
        adapters = run.get("adapters", "many")
        ratio = run.get("itl_p99_ratio")
        what = f"a server, p99 between tokens: {adapters} coming / quiet"
        yield Row(what, run.get("goal", GPU_SHAPE_GOAL), ratio, unit="×")
        for row in run.get("first_tokens") or [{}]:
            prompt = f", prompt {row['prompt_tokens']}" if row else ""
            allowed, cold = row.get("cold_first_token_goal_ms", 0.0), row.get("cold_first_token_ms")
            yield Row(f"a server, {adapters} coming: first token{prompt}", allowed, cold, unit="ms")


def cpu_rows(churns: Iterable[Path]) -> Iterator[Row]:
    """Of `benchmarks.churn` on CPUs, each named by its file."""
    for path in churns:
        churn = _read(path)
        cpu = path.stem.removesuffix("-churn")
        goal = churn.get("goal", GOAL)
        yield Row(f"a server, {cpu}, p99: storm / quiet", goal, churn.get("itl_p99_ratio"), unit="×")


def _product_rows(products: dict[str, Any]) -> Iterator[Row]:
    """Shares of the copy bandwidth, see `_shares`."""
    wide = ("4096x28672", "14336x4096")
    for shape in ("4096x6144", "4096x28672", "14336x4096", "4096x4096"):
        yield Row(f"NF4 product {shape}, 1 row", 0.60, products.get(f"nf4 {shape} 1"), at_most=False)
    for count, goal in ((8, 0.5), (16, 0.5), (32, 0.35)):
        for shape in wide:
            figure = products.get(f"nf4 {shape} {count}")
            yield Row(f"NF4 product {shape}, {count} rows", goal, figure, at_most=False)
    for count in (1, 8, 16, 32):
        for shape in wide:
            figure = products.get(f"int8 {shape} {count}")
            yield Row(f"INT8 product {shape}, {_many(count, 'row')}", 0.75, figure, at_most=False)


def against_bf16_rows(products: dict[str, Any]) -> Iterator[Row]:
    """Of a report of `benchmarks.products`: the NF4 product that is slowest beside bf16's, at up to 128 rows."""
    times: dict[tuple[int, int, int], dict[str, float]] = {}
    for figure in products.get("products", {}).get("llama-3.1-8b", []):
        place = (figure["inputs"], figure["outputs"], figure["rows"])
        times.setdefault(place, {})[figure["format"]] = figure["microseconds"]
    ratios = {
        place: of["nf4"] / of["bf16"]
        for place, of in times.items()
        if place[2] <= 128 and {"nf4", "bf16"} <= of.keys()
    }
    worst = max(ratios, key=lambda place: ratios[place], default=None)
    where = "" if worst is None else f", {worst[0]}x{worst[1]}, {worst[2]} rows"
    yield Row(f"NF4 ÷ bf16 product, worst{where}", 1.0, ratios.get(worst) if worst else None, unit="×")


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _shares(report: dict[str, Any], bandwidth: float) -> dict[str, float]:
    """Of a report of `benchmarks.products`: "format K×N rows" -> share of the copy bandwidth, bytes per second."""
    return {
        f"{figure['format']} {figure['inputs']}x{figure['outputs']} {figure['rows']}": figure["weight_bytes"]
        / figure["microseconds"]
        / (bandwidth / 1e6)
        for figure in report.get("products", {}).get("llama-3.1-8b", [])
    }


def _ratio(above: dict[str, Any], below: dict[str, Any], key: str) -> float | None:
    return above[key] / below[key] if key in above and key in below else None


def main() -> None:
    """Print the table, or the rows as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goals", description=__doc__)
    parser.add_argument("--engine", type=Path, default=_RESULTS / "h200-engine.json")
    parser.add_argument("--products", type=Path, default=_RESULTS / "h200-products.json")
    streams = [_RESULTS / f"h200-engine-stream-{rows}-rows.json" for rows in (64, 8)]
    parser.add_argument("--stream", type=Path, nargs="+", default=streams)
    parser.add_argument("--churn", type=Path, default=_RESULTS / "h200-churn.json")
    parser.add_argument("--server-churn", type=Path, default=_RESULTS / "h200-server-churn.json")
    parser.add_argument("--server-storm", type=Path, default=_RESULTS / "h200-server-storm.json")
    cpu_churns = sorted(_RESULTS.glob("*-cores-churn.json"))
    parser.add_argument("--cpu-churn", type=Path, nargs="+", default=cpu_churns)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    products, engine = _read(arguments.products), _read(arguments.engine)
    bandwidth = max(report.get("copy_bytes_per_second", 0.0) for report in (products, engine))
    found = [
        *rows(_shares(products, bandwidth), engine.get("runs", {})),
        *against_bf16_rows(products),
        *stream_rows(arguments.stream),
        *churn_rows(_read(arguments.churn)),
        *server_rows(_read(arguments.server_churn), _read(arguments.server_storm)),
        *cpu_rows(arguments.cpu_churn),
    ]
    if arguments.json:
        print(json.dumps([{**_fields(row), "verdict": row.verdict} for row in found]))
        return
    for row in found:
        figure = "-" if row.figure is None else f"{row.figure:,.3g}"
        sign = "≤" if row.at_most else "≥"
        print(f"{row.what:48} {sign} {row.goal:>8,g} {row.unit:9} {figure:>9}  {row.verdict}")
    print(f"{sum(row.verdict == 'met' for row in found)} of {len(found)} met")


def _fields(row: Row) -> dict[str, Any]:
    return {"what": row.what, "goal": row.goal, "figure": row.figure, "unit": row.unit}


def _read(path: Path) -> dict[str, Any]:
    """A report; nothing where the file is not there, or empty."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    content: dict[str, Any] = json.loads(text) if text.strip() else {}
    return content


if __name__ == "__main__":
    main()
