"""Microseconds of each operation besides the base products, at the shapes of Llama-3.1-8B, in CUDA graphs.

    python -m benchmarks.ops --json ops.json [--only lora_] [--repeats 20]

Every graph holds one launch (or pair) per layer and every layer has its own weights and pages, so that the L2 cache
serves no more than it would in a decode step. The floor is bytes over the copy bandwidth measured first.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.bandwidth import copy_bandwidth
from benchmarks.versions import versions
from loraplex_server.kernels.decode_attention import decode_attention, num_parts
from loraplex_server.kernels.lora_apply import lora_apply, lora_prepare
from loraplex_server.kernels.lora_cuda import plan_ints
from loraplex_server.kernels.lora_expand import lora_expand
from loraplex_server.kernels.lora_scratch import LoraScratch, max_rank_groups, num_splits
from loraplex_server.kernels.lora_shrink import lora_shrink
from loraplex_server.kernels.lora_tables import (
    LARGE_TILE_ROWS,
    SMALL_TILE_ROWS,
    LoraTables,
    ProjectionShape,
    plan_row_tiles,
    projection_record,
    row_tile_table,
)
from loraplex_server.kernels.norm import rms_norm
from loraplex_server.kernels.paged_attention import AttentionShape
from loraplex_server.kernels.prefill_attention import plan_query_tiles, prefill_attention, query_tile_table
from loraplex_server.kernels.quantize import QuantizedRows, quantize_rows
from loraplex_server.kernels.rope import rope_and_write
from loraplex_server.kernels.sampling import RowSampling, SampleScratch, sample
from loraplex_server.kernels.swiglu import swiglu

HIDDEN, INTERMEDIATE, VOCAB, LAYERS, BLOCK_SIZE = 4096, 14336, 128256, 32, 16
ATTENTION = AttentionShape(num_heads=32, num_kv_heads=8, head_dim=128, sliding_window=None)
PROJECTIONS = {
    "qkv": ProjectionShape(0, HIDDEN, (4096, 1024, 1024)),
    "o": ProjectionShape(1, HIDDEN, (HIDDEN,)),
    "gate_up": ProjectionShape(2, HIDDEN, (INTERMEDIATE, INTERMEDIATE)),
    "down": ProjectionShape(3, INTERMEDIATE, (HIDDEN,)),
}
RANKS = (16, 8, 64, 32)  # of adapters 0, 1, 2, 3, and again
MAX_RANK = 64
LONGEST = 131_072  # tokens of a context that an engine may be made for
KV_LAYERS = 4  # caches of 2048 tokens × 128 rows for every layer would not fit beside the arena

DEVICE = torch.device("cuda")


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one size."""

    name: str
    floor_bytes: int  # of one layer, read and written
    run: Callable[[int], None]  # given the layer


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a case took."""

    name: str
    us: float  # of one layer, median
    floor_us: float


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) * scale


def build_tables(num_adapters: int, rank_of: Callable[[int], int]) -> LoraTables:
    """An arena with adapters on all projections of all layers."""
    records = torch.empty(num_adapters, LAYERS, len(PROJECTIONS), 8, dtype=torch.int32)
    end = 0

    def place(num_elements: int) -> int:
        nonlocal end
        end += num_elements
        return end - num_elements

    for slot in range(num_adapters):
        rank = rank_of(slot)
        for layer in range(LAYERS):
            for shape in PROJECTIONS.values():
                a = place(rank * len(shape.widths) * shape.in_features)
                b = [place(rank * width) for width in shape.widths]
                record = projection_record(a, b, [rank] * len(shape.widths))
                records[slot, layer, shape.index] = torch.tensor(record, dtype=torch.int32)
    arena = torch.empty(end, dtype=torch.bfloat16, device=DEVICE)
    for part in torch.split(arena, 1 << 28):
        part.normal_(0.0, 0.02)
    return LoraTables(arena, records.to(DEVICE), records)


def decode_tiles(rows: int, adapters: int) -> Tensor:
    """Rows dealt to adapters in turn, sorted by adapter."""
    used = min(rows, adapters)
    runs = [(slot, len(range(slot, rows, used))) for slot in range(used)]
    tiles = plan_row_tiles(runs, SMALL_TILE_ROWS)
    return row_tile_table(tiles, len(tiles)).to(DEVICE)


def scratch_for(shape: ProjectionShape, shrunk: Tensor, tiles: Tensor, tile_rows: int) -> LoraScratch:
    num_parts = num_splits(shape.in_features, tile_rows) * shrunk.numel()
    num_counters = tiles.shape[0] * max_rank_groups(shrunk.shape[1])
    num_plan_ints = plan_ints(LAYERS, len(PROJECTIONS), tiles.shape[0])
    return LoraScratch.allocate(num_parts, num_counters, num_plan_ints, DEVICE)


def lora_bytes(shape: ProjectionShape, ranks: list[int]) -> tuple[int, int]:
    """(A, B) of one layer."""
    total = sum(ranks)
    return 2 * total * len(shape.widths) * shape.in_features, 2 * total * sum(shape.widths)


def lora_cases(rows: int, adapters: int, tables: LoraTables, ranks: list[int]) -> Iterator[Case]:
    tiles = decode_tiles(rows, adapters)
    label = f"rows {rows:3} adapters {adapters:2}"
    in_features = [shape.in_features for shape in PROJECTIONS.values()]
    steps: list[Callable[[int], None]] = []
    total_bytes = 0
    for name, shape in PROJECTIONS.items():
        x, y = random(rows, shape.in_features), random(rows, sum(shape.widths))
        shrunk = random(rows, MAX_RANK * len(shape.widths))
        scratch = scratch_for(shape, shrunk, tiles, SMALL_TILE_ROWS)
        a_bytes, b_bytes = lora_bytes(shape, ranks)

        lora_prepare(scratch, tables, tiles, in_features, SMALL_TILE_ROWS)

        def apply(
            layer: int,
            x: Tensor = x,
            y: Tensor = y,
            shrunk: Tensor = shrunk,
            scratch: LoraScratch = scratch,
            shape: ProjectionShape = shape,
        ) -> None:
            place = (tables, tiles, layer, shape, SMALL_TILE_ROWS)
            lora_apply(x, y, shrunk, scratch, *place, adds=len(shape.widths) == 1)

        y_bytes = (4 if len(shape.widths) == 1 else 2) * y.numel()  # added, or written alone
        yield Case(f"lora {name:7} {label}", a_bytes + b_bytes + 2 * x.numel() + y_bytes, apply)
        steps.append(apply)
        total_bytes += a_bytes + b_bytes

    def all_projections(layer: int) -> None:
        for step in steps:
            step(layer)

    yield Case(f"lora_layer          {label}", total_bytes, all_projections)


def fused_cases(rows: int) -> Iterator[Case]:
    """Rotation and SwiGLU, without LoRA and with it; LoRA's own products are not part of the time."""
    caches = [random(256, BLOCK_SIZE, 2048) for _ in range(KV_LAYERS)]
    angles = torch.rand(4096, 64, device=DEVICE)
    cos, sin = angles.cos(), angles.sin()
    positions = torch.randint(2048, (rows,), device=DEVICE)
    slots = torch.randperm(256 * BLOCK_SIZE, device=DEVICE)[:rows]
    qkv, gate_up = random(rows, 6144), random(rows, 2 * INTERMEDIATE)
    activated = random(rows, INTERMEDIATE)

    def rotate(layer: int, delta: Tensor | None) -> None:
        rope_and_write(qkv, cos, sin, positions, slots, caches[layer % KV_LAYERS], 32, 8, None, delta)

    for label, qkv_delta, gate_up_delta in (
        ("", None, None),
        ("+lora", torch.zeros_like(qkv), torch.zeros_like(gate_up)),
    ):

        def turn(layer: int, delta: Tensor | None = qkv_delta) -> None:
            rotate(layer, delta)

        def activate(_: int, delta: Tensor | None = gate_up_delta) -> None:
            swiglu(gate_up, activated, None, delta)

        extra = 0 if qkv_delta is None else 2
        yield Case(f"rope{label:7} rows {rows:3}", (4 + extra) * qkv.numel(), turn)
        yield Case(f"swiglu{label:7} rows {rows:3}", (6 + 2 * extra) * activated.numel(), activate)


def row_cases(rows: int) -> Iterator[Case]:
    hidden, delta, out = random(rows, HIDDEN), random(rows, HIDDEN, scale=0.01), random(rows, HIDDEN)
    weight = random(HIDDEN)
    gate_up, activated = random(rows, 2 * INTERMEDIATE), random(rows, INTERMEDIATE)

    def quantized(features: int) -> QuantizedRows:
        values = torch.empty(rows, features, dtype=torch.int8, device=DEVICE)
        return QuantizedRows(values, torch.empty(rows, device=DEVICE))

    narrow, wide = quantized(HIDDEN), quantized(INTERMEDIATE)
    n = hidden.numel()
    yield Case(
        f"add+norm         rows {rows:3}", 8 * n, lambda _: rms_norm(hidden, delta, weight, 1e-5, out, None)
    )
    yield Case(
        f"add+norm+quant   rows {rows:3}",
        7 * n,
        lambda _: rms_norm(hidden, delta, weight, 1e-5, None, narrow),
    )
    yield Case(
        f"swiglu+quant     rows {rows:3}", 5 * activated.numel(), lambda _: swiglu(gate_up, None, wide)
    )
    yield Case(
        f"quantize 14336   rows {rows:3}", 3 * activated.numel(), lambda _: quantize_rows(activated, wide)
    )


def decode_attention_case(
    rows: int, context: int, bound: int | None = None, longest: int | None = None
) -> Case:
    """Contexts of one length, but for one that is the `longest`; a launch made for contexts up to `bound`."""
    contexts = [context] * (rows - 1) + [longest or context]
    bound = bound or max(contexts)
    used = [-(-length // BLOCK_SIZE) for length in contexts]
    caches = [random(sum(used), BLOCK_SIZE, 2048) for _ in range(KV_LAYERS)]
    tables = torch.zeros(rows, -(-bound // BLOCK_SIZE), dtype=torch.int32, device=DEVICE)
    blocks = torch.randperm(sum(used), device=DEVICE).to(torch.int32)
    for row, of_row in enumerate(torch.split(blocks, used)):
        tables[row, : len(of_row)] = of_row
    lengths = torch.tensor(contexts, dtype=torch.int32, device=DEVICE)
    qkv, out = random(rows, 6144), random(rows, HIDDEN)
    queries = qkv[:, :HIDDEN].view(rows, 32, 128)
    states = rows * 32 * num_parts(bound)
    part_out, part_state = torch.empty(states * 128, device=DEVICE), torch.empty(states * 2, device=DEVICE)

    def run(layer: int) -> None:
        cache = caches[layer % KV_LAYERS]
        decode_attention(queries, cache, tables, lengths, bound, out, part_out, part_state, ATTENTION)

    floor = sum(contexts) * 4096 + 4 * out.numel()
    name = f"decode_attention rows {rows:3} context {context:4}"
    name += "" if longest is None else f" and {longest}"
    return Case(name + ("" if bound == max(contexts) else f" of {bound}"), floor, run)


def prefill_attention_case(sequences: int, tokens: int) -> Case:
    """The floor counts bytes; at these lengths arithmetic takes longer."""
    width = -(-tokens // BLOCK_SIZE)
    caches = [random(sequences * width, BLOCK_SIZE, 2048) for _ in range(KV_LAYERS)]
    tables = torch.randperm(sequences * width, device=DEVICE).view(sequences, width)
    queries, out = random(sequences * tokens, 32, 128), random(sequences * tokens, HIDDEN)
    tiles = plan_query_tiles([(index * tokens, tokens, 0, index) for index in range(sequences)])
    table = query_tile_table(tiles, len(tiles)).to(DEVICE)

    def run(layer: int) -> None:
        prefill_attention(queries, caches[layer % KV_LAYERS], tables, table, out, ATTENTION)

    floor = sequences * tokens * (4096 + 4 * HIDDEN)
    return Case(f"prefill_attention {sequences} × {tokens}", floor, run)


def prefill_lora_case(tokens: int, adapters: int, tables: LoraTables) -> Case:
    """All four projections of one layer."""
    runs = [(slot, tokens // adapters) for slot in range(adapters)]
    tiles = plan_row_tiles(runs, LARGE_TILE_ROWS)
    table = row_tile_table(tiles, len(tiles)).to(DEVICE)
    buffers = []
    floor = 0
    for shape in PROJECTIONS.values():
        x, y = random(tokens, shape.in_features), random(tokens, sum(shape.widths))
        shrunk = random(tokens, MAX_RANK * len(shape.widths))
        scratch = scratch_for(shape, shrunk, table, LARGE_TILE_ROWS)
        buffers.append((shape, x, y, shrunk, scratch))
        floor += 2 * x.numel() + 4 * y.numel()

    def run(layer: int) -> None:
        for shape, x, y, shrunk, scratch in buffers:
            lora_shrink(x, shrunk, scratch, tables, table, layer, shape, LARGE_TILE_ROWS)
            lora_expand(shrunk, y, tables, table, layer, shape, LARGE_TILE_ROWS, adds=len(shape.widths) == 1)

    return Case(f"lora_layer prefill tokens {tokens} adapters {adapters}", floor, run)


def sample_cases(rows: int) -> Iterator[Case]:
    logits = torch.randn(rows, VOCAB, device=DEVICE) * 3
    scratch = SampleScratch.allocate(rows, VOCAB, DEVICE)
    out = torch.empty(rows, dtype=torch.int64, device=DEVICE)

    def parameters(top_k: int, top_p: float) -> RowSampling:
        def filled(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((rows,), value, dtype=dtype, device=DEVICE)

        index = torch.arange(rows, device=DEVICE)
        return RowSampling(
            filled(1.0, torch.float32),
            filled(top_k, torch.int32),
            filled(top_p, torch.float32),
            filled(0.0, torch.float32),
            index * 977,
            index,
        )

    kinds = {
        "greedy": None,
        "whole": parameters(0, 1.0),
        "top-p 0.9": parameters(0, 0.9),
        "top-k 50, top-p 0.9": parameters(50, 0.9),
    }
    for name, sampling in kinds.items():

        def run(_: int, sampling: RowSampling | None = sampling) -> None:
            sample(logits, sampling, scratch, out)

        yield Case(f"sample {name:20} rows {rows:3}", 4 * logits.numel(), run)


def all_cases() -> Iterator[Case]:
    """Cases in order; each group's memory is freed before the next is built."""
    for adapters in (1, 8, 32):
        ranks = [RANKS[slot % len(RANKS)] for slot in range(adapters)]
        tables = build_tables(adapters, lambda slot: RANKS[slot % len(RANKS)])
        for rows in (1, 8, 32, 128):
            used = ranks[: min(rows, adapters)]
            if rows >= adapters or rows == 8:
                yield from lora_cases(rows, adapters, tables, used)
        if adapters == 8:
            yield prefill_lora_case(2048, adapters, tables)
    for rows in (1, 8, 32, 128):
        yield from fused_cases(rows)
        yield from row_cases(rows)
        yield from sample_cases(rows)
        for context in (256, 2048):
            yield decode_attention_case(rows, context)
            yield decode_attention_case(rows, context, bound=LONGEST)
        yield decode_attention_case(rows, 256, bound=LONGEST, longest=100_000)
    yield prefill_attention_case(1, 2048)
    yield prefill_attention_case(4, 2048)


def elapsed_ms(run: Callable[[], object]) -> float:
    """Device time of one call."""
    event: Callable[..., torch.cuda.Event] = torch.cuda.Event
    start, stop = event(enable_timing=True), event(enable_timing=True)
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop))


def time_case(case: Case, repeats: int, bandwidth: float) -> Timing:
    """Median over replays of a graph of all layers, per layer."""
    for layer in range(2):
        case.run(layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(LAYERS):
            case.run(layer)
    graph.replay()
    times = [elapsed_ms(graph.replay) * 1e3 / LAYERS for _ in range(repeats)]
    return Timing(case.name, statistics.median(times), case.floor_bytes / bandwidth * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all timings here")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.ops needs an NVIDIA GPU")
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, copy {bandwidth / 1e12:.2f} TB/s, torch {torch.__version__}")
    timings = []
    for case in all_cases():
        if arguments.only in case.name:
            timings.append(time_case(case, arguments.repeats, bandwidth))
            timing = timings[-1]
            print(f"{timing.name:45} {timing.us:8.2f} µs   floor {timing.floor_us:8.2f}", flush=True)
    if arguments.json:
        report = {
            "device": torch.cuda.get_device_name(),
            "copy_bytes_per_second": bandwidth,
            "versions": versions(),
            "timings": [dataclasses.asdict(timing) for timing in timings],
        }
        arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
