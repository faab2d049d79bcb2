from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.engine.world import World


@pytest.mark.skipif(find_spec("numba") is None, reason="without Numba there is nothing to compile")
def test_no_request_meets_a_compiler(world: World) -> None:
    """vLLM #43009, #55967, #45631: LoRA kernels were compiled by the first request that needed them."""
    arguments = [str(world.base), str(world.store), world.digests["rank-16"]]

    ended = subprocess.run(
        [sys.executable, "-m", "tests.integration.engine.count_compiled", *arguments],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    for quantization, num_compiled in json.loads(ended.stdout).items():
        assert num_compiled["after"] == num_compiled["before"] > 0, quantization
