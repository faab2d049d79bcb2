"""What a churn is run on: the server's arguments, the adapters of its streams, and those that come and go."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.adapter_variants import write_variant
from benchmarks.shapes import SHAPES
from benchmarks.workload import ADAPTERS, adapter_packages

NUM_SLOTS = 8
_MAX_CONTEXT = 4096
_KV_CACHE_BYTES = {"cpu": 4 * 2**30, "cuda": 8 * 2**30}
_QUANTIZATION = {"cpu": "int8", "cuda": "nf4"}
_ELEMENT_BYTES = {"cpu": 4, "cuda": 2}  # of an adapter in its slot
_NUM_RESIDENT, _RESIDENT_RANK, _COLD_PLACES = (
    8,
    16,
    3,
)  # of a named shape; the arena has room for as many newcomers

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """Packages lie in folders under one that the server may read from."""

    server_arguments: list[str]
    resident: dict[str, Path]  # name -> package, of the streams
    newcomers: list[Path]  # packages that the server has never seen
    newcomer_bytes: int  # of one in its slot
    described: dict[str, Any]


def prepare(options: argparse.Namespace, folder: Path, say: Say) -> Setting:
    """Write into the empty folder `folder` what the options ask for. Raises FileNotFoundError."""
    quantization = options.quantization or _QUANTIZATION[options.device]
    arguments = ["--device", options.device, "--quantization", quantization]
    arguments += ["--max-output-tokens", str(_MAX_CONTEXT - 96), "--max-context-tokens", str(_MAX_CONTEXT)]
    arguments += ["--kv-cache-bytes", str(_KV_CACHE_BYTES[options.device]), "--adapter-root", str(folder)]
    if options.device == "cpu":
        arguments += ["--num-threads", str(options.num_threads)]
    described = {"device": options.device, "quantization": quantization}
    count = len(options.source) * options.rounds * options.adapters_per_round
    if options.shape is None:
        return _shipped(options, folder, arguments, described, count)
    return _random(options, folder, arguments, described, count, say)


def _shipped(
    options: argparse.Namespace,
    folder: Path,
    arguments: list[str],
    described: dict[str, Any],
    count: int,
) -> Setting:
    """The default base, or another that the adapters fit, with the shipped adapters and variants of them."""
    packages = adapter_packages(options.adapters)
    arguments += ["--adapter-slots", str(NUM_SLOTS)]
    if options.base is not None:
        arguments += ["--base", options.base]
    newcomers = [
        write_variant(packages[ADAPTERS[number // options.adapters_per_round % 3]], folder, number)
        for number in range(count)
    ]
    size = (newcomers[0] / "adapter_model.safetensors").stat().st_size
    return Setting(arguments, packages, newcomers, size, {**described, "adapter_slots": NUM_SLOTS})


def _random(
    options: argparse.Namespace,
    folder: Path,
    arguments: list[str],
    described: dict[str, Any],
    count: int,
    say: Say,
) -> Setting:
    """A base of random weights, eight small adapters for the streams, and room for few of those that come."""
    import torch  # only here: what measures is to weigh little beside the server

    from benchmarks.random_base import elements_per_rank, random_base_spec
    from benchmarks.random_folder import write_random_base
    from benchmarks.random_packages import write_packages
    from loraplex_server.model.config import DecoderConfig

    shape, largest = SHAPES[options.shape], max(options.rank)
    base = folder / "base"
    say(f"writing a base of random weights in the shape of {options.shape}")
    write_random_base(
        base,
        shape,
        torch.device(options.device),
        lambda done, total: say(f"shard {done} of {total}") if done % 8 == 0 or done == total else None,
    )
    if options.device == "cuda":
        torch.cuda.empty_cache()  # the server's plan counts what is free
    spec = random_base_spec(DecoderConfig.from_hf(shape))
    say(f"writing adapters of rank {', '.join(map(str, options.rank))}")
    resident = write_packages(folder / "resident", spec, _RESIDENT_RANK, _NUM_RESIDENT, seed=4)
    of_rank = [write_packages(folder / f"rank-{rank}", spec, rank, count) for rank in options.rank]
    newcomers = [of_rank[number % len(of_rank)][number] for number in range(count)]
    per_rank = _ELEMENT_BYTES[options.device] * elements_per_rank(spec)
    size, slots = per_rank * largest, _NUM_RESIDENT + _COLD_PLACES * len(options.rank) + 1
    arguments += [
        "--base",
        str(base),
        "--adapter-slots",
        str(slots),
        "--max-lora-rank",
        str(max(largest, 16)),
    ]
    arena_bytes = _NUM_RESIDENT * per_rank * _RESIDENT_RANK + _COLD_PLACES * size + 2**20
    arguments += ["--adapter-arena-bytes", str(arena_bytes), "--host-cache-bytes", str(2 * size + 2**20)]
    arguments += ["--max-adapter-bytes", str(max(2**29, 2 * size)), "--max-running", "32"]
    return Setting(
        arguments,
        {f"resident/number-{number}": package for number, package in enumerate(resident)},
        newcomers,
        size,
        {**described, "shape": options.shape, "ranks": options.rank, "adapter_slots": slots},
    )
