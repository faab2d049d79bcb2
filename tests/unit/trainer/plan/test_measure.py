"""Two real steps in a process of their own correct a plan."""

from __future__ import annotations

import json
import mmap
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loraplex_cli.main import app
from loraplex_trainer.errors import MeasurementError
from loraplex_trainer.plan.hardware import GIB, Hardware
from loraplex_trainer.plan.measure import measure
from loraplex_trainer.plan.peak import peak_bytes, reset_peak
from loraplex_trainer.plan.planner import make_plan
from loraplex_trainer.plan.shape import model_shape

from ..conftest import write_recipe
from .conftest import data_of, recipe_of

CPU = Hardware("cpu", "two cores", 16 * GIB, 12 * GIB, False, 2, 16 * GIB)


def test_the_peak_of_this_process_grows_with_what_it_touches_and_can_be_forgotten() -> None:
    reset_peak("cpu")
    before = peak_bytes("cpu", 0)
    with mmap.mmap(
        -1, 64 * 2**20
    ) as block:  # memory of its own: the allocator may have some that is touched already
        for start in range(0, len(block), mmap.PAGESIZE):
            block[start] = 1
        with_block = peak_bytes("cpu", 0)
    reset_peak("cpu")

    assert with_block - before > 50 * 2**20
    assert with_block - peak_bytes("cpu", 0) > 50 * 2**20


@pytest.mark.slow
def test_plan_measure_takes_the_peak_and_the_time_of_real_steps(tmp_path: Path, tiny_base: Path) -> None:
    recipe = write_recipe(tmp_path, base={"model": str(tiny_base)})

    result = CliRunner().invoke(app, ["train", "plan", str(recipe), "--measure", "--json"])

    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    # Libraries are nearly all of it here.
    assert plan["measured_peak_bytes"] == pytest.approx(plan["memory"]["total"], rel=0.25)
    assert plan["measured_step_seconds"] > 0
    assert any(choice["field"] == "memory" for choice in plan["choices"])


@pytest.mark.slow
def test_a_trial_that_fails_says_why_in_one_line(tmp_path: Path, tiny_base: Path) -> None:
    broken = tmp_path / "base"
    shutil.copytree(tiny_base, broken)
    (broken / "model.safetensors").write_bytes(b"no tensors")
    plan = make_plan(recipe_of(data=data_of(max_length=16)), model_shape(broken), CPU)

    with pytest.raises(MeasurementError, match="the trial steps of lora-fp32 failed") as failure:
        measure(replace(plan, micro_batch=1), broken, dropout=0.0)
    assert "\n" not in str(failure.value)
