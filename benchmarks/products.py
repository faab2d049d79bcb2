"""Time the quantized products against bf16 `F.linear` and the memory bus of the GPU in this machine.

    python -m benchmarks.products [--shapes llama-3.1-8b] [--output results.json]

Each figure is the median time of one product among many in a CUDA graph, over enough copies of the weight that the L2
cache does not serve them. The floor is the bytes of weight and scales ÷ the measured copy bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.bandwidth import copy_bandwidth
from benchmarks.versions import versions
from loraplex_server.kernels.int8_matmul import Int8Weight, int8_matmul
from loraplex_server.kernels.nf4_matmul import nf4_matmul
from loraplex_server.kernels.nf4_weight import Nf4Weight
from loraplex_server.kernels.quantize import QuantizedRows

SHAPES = {  # name -> (inputs, outputs) of the four packed projections
    "llama-3.1-8b": {
        "qkv": (4096, 6144),
        "o": (4096, 4096),
        "gate_up": (4096, 28672),
        "down": (14336, 4096),
    },
    "qwen2.5-7b": {
        "qkv": (3584, 4608),
        "o": (3584, 3584),
        "gate_up": (3584, 37888),
        "down": (18944, 3584),
    },
    "smollm2-135m": {"qkv": (576, 960), "o": (576, 576), "gate_up": (576, 3072), "down": (1536, 576)},
}
ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
FORMATS = ("bf16", "nf4", "nf4 exact", "int8")
_BYTES_BEYOND_CACHE = 250_000_000
_REPLAYS = 7


@dataclass(frozen=True, slots=True)
class Measurement:
    """One product."""

    projection: str
    inputs: int
    outputs: int
    rows: int
    format: str
    microseconds: float
    weight_bytes: int
    error: float  # norm of the difference ÷ norm, against fp64 over the same operands

    def share_of(self, bytes_per_second: float) -> float:
        """The floor ÷ the time."""
        return self.weight_bytes / bytes_per_second / (self.microseconds * 1e-6)


def median_microseconds(calls: list[Callable[[], object]]) -> float:
    """Of one call, all of them captured in one graph."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return statistics.median(_elapsed_ms(graph) * 1e3 / len(calls) for _ in range(_REPLAYS))


def _elapsed_ms(graph: torch.cuda.CUDAGraph) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop))


def measure_projection(projection: str, inputs: int, outputs: int) -> list[Measurement]:
    """All formats and row counts of one shape, over random weights."""
    codes = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device="cuda")
    nf4 = Nf4Weight.from_codes(codes, torch.rand(outputs, inputs // 64, device="cuda") * 0.02 + 0.002)
    dense, nf4_unrounded = nf4.dequantized(), nf4.unrounded()
    int8 = Int8Weight.from_dense(dense)
    nf4s = [Nf4Weight(records, outputs, inputs) for records in _copies(nf4.records)]
    denses = _copies(dense)
    int8s = [Int8Weight(values, int8.scales) for values in _copies(int8.values)]

    results = []
    for rows in ROWS:
        x = torch.randn(rows, inputs, dtype=torch.bfloat16, device="cuda")
        quantized = QuantizedRows(
            torch.randint(-127, 128, (rows, inputs), dtype=torch.int8, device="cuda"),
            torch.rand(rows, device="cuda") * 0.02,
        )
        out = torch.empty(rows, outputs, dtype=torch.bfloat16, device="cuda")
        expected, unrounded = x.double() @ dense.double().t(), x.double() @ nf4_unrounded.t()
        integers = quantized.values.double() @ int8.values.double().t()
        expected_int8 = integers * quantized.scales.double().unsqueeze(1) * int8.scales.double()
        products: dict[str, tuple[int, Tensor, list[Callable[[], object]]]] = {
            "bf16": (dense.nbytes, expected, [_dense_call(x, weight, out) for weight in denses]),
            "nf4": (nf4.nbytes, unrounded, [_nf4_call(x, weight, out, False) for weight in nf4s]),
            "nf4 exact": (nf4.nbytes, expected, [_nf4_call(x, weight, out, True) for weight in nf4s]),
            "int8": (int8.nbytes, expected_int8, [_int8_call(quantized, weight, out) for weight in int8s]),
        }
        for name, (weight_bytes, reference, calls) in products.items():
            out.fill_(torch.nan)
            calls[0]()
            error = float((out.double() - reference).norm() / reference.norm())
            repeated = calls * -(-24 // len(calls))
            microseconds = median_microseconds(repeated)
            results.append(
                Measurement(projection, inputs, outputs, rows, name, microseconds, weight_bytes, error)
            )
    return results


def _copies(tensor: Tensor) -> list[Tensor]:
    return [tensor] + [tensor.clone() for _ in range(min(200, _BYTES_BEYOND_CACHE // tensor.nbytes))]


def _dense_call(x: Tensor, weight: Tensor, out: Tensor) -> Callable[[], object]:
    return lambda: torch.mm(x, weight.t(), out=out)


def _nf4_call(x: Tensor, weight: Nf4Weight, out: Tensor, exact: bool) -> Callable[[], object]:
    return lambda: nf4_matmul(x, weight, out, exact=exact)


def _int8_call(x: QuantizedRows, weight: Int8Weight, out: Tensor) -> Callable[[], object]:
    return lambda: int8_matmul(x, weight, out)


def print_table(results: list[Measurement], bandwidth: float) -> None:
    print("| projection | K×N | rows | " + " | ".join(FORMATS) + " | (µs; share of the copy bandwidth)")
    print("|---" * (3 + len(FORMATS)) + "|")
    cells = {(result.projection, result.rows, result.format): result for result in results}
    for projection, rows in dict.fromkeys((result.projection, result.rows) for result in results):
        line = [cells[projection, rows, name] for name in FORMATS]
        shown = " | ".join(f"{cell.microseconds:.1f} ({cell.share_of(bandwidth):.0%})" for cell in line)
        print(f"| {projection} | {line[0].inputs}×{line[0].outputs} | {rows} | {shown} |")
    worst = max(results, key=lambda result: result.error)
    print(
        f"largest relative error: {worst.error:.2e} ({worst.format}, {worst.projection}, {worst.rows} rows)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", choices=[*SHAPES], nargs="+", default=["llama-3.1-8b"])
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        bandwidth = copy_bandwidth()
        device = torch.cuda.get_device_name()
        print(f"{device}, torch {torch.__version__}, copy {bandwidth / 1e12:.2f} TB/s")
        measured = {}
        for shapes in arguments.shapes:
            print(f"\n{shapes}")
            results = [
                result
                for projection, (inputs, outputs) in SHAPES[shapes].items()
                for result in measure_projection(projection, inputs, outputs)
            ]
            print_table(results, bandwidth)
            measured[shapes] = [asdict(result) for result in results]
    if arguments.output:
        report = {
            "device": device,
            "versions": versions(),
            "copy_bytes_per_second": bandwidth,
            "products": measured,
        }
        arguments.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
