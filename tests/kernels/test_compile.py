"""What the interpreter accepts Triton's compiler may not; compiling needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = {
    "shrink_small_tiles_kernel",
    "shrink_large_tiles_kernel",
    "_expand_kernel",
    "_rope_and_write_kernel",
    "_swiglu_kernel",
    "_swiglu_tiles_kernel",
    "_decode_attention_kernel",
    "_combine_kernel",
    "_prefill_attention_kernel",
    "_rms_norm_kernel",
    "_quantize_rows_kernel",
    "_read_kernel",
    "_embed_kernel",
    "_add_kernel",
    "_write_kernel",
    "_penalize_kernel",
    "_count_kernel",
    "_product",
    "survey_kernel",
    "race_kernel",
    "choose_kernel",
}


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    """In a process of its own, because the interpreter is chosen for a whole process."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_for_hopper"],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr[-3000:]
    assert set(run.stdout.split()) == KERNELS
