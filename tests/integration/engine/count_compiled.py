"""Starts engines, serves an adapter with each, and prints how many kernels were ready before and after.

python -m tests.integration.engine.count_compiled BASE STORE DIGEST, in a process that has compiled nothing yet.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from numba.core.dispatcher import Dispatcher

from tests.integration.engine.run import EngineRun
from tests.integration.engine.world import World, start_engine


def num_compiled() -> int:
    """Kernels of ours, and their parts, with each signature that they were compiled for or read from disk with."""
    return sum(
        len(found.signatures)
        for found in gc.get_objects()
        if isinstance(found, Dispatcher) and found.py_func.__module__.startswith("loraplex_server.")
    )


def count(world: World, digest: str, quantization: str) -> dict[str, int]:
    """Before and after the first requests of an engine."""
    with EngineRun(start_engine(world, quantization=quantization)) as run:
        before = num_compiled()
        for _ in range(4):
            run.add(list(range(3, 40)), digest)
            run.add(list(range(3, 40)))
        run.finish()
        return {"before": before, "after": num_compiled()}


def main(base: str, store: str, digest: str) -> None:
    world = World(Path(base), Path(store), {}, {}, {})
    counts = {quantization: count(world, digest, quantization) for quantization in ("fp32", "int8")}
    sys.stdout.write(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
