"""M03: the measured peak of real steps on SmolLM2 is within 25 % of the plan, on a CPU."""

from __future__ import annotations

from typing import Any

import pytest

from loraplex_server.base.resolve import resolve_base
from loraplex_trainer.plan.hardware import GIB, Hardware
from loraplex_trainer.plan.measure import measure
from loraplex_trainer.plan.planner import make_plan
from loraplex_trainer.plan.shape import model_shape

from .conftest import data_of, recipe_of

CPU = Hardware("cpu", "two cores", 16 * GIB, 12 * GIB, False, 2, 16 * GIB)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "length", "train"),
    [
        ("lora", 256, {"micro_batch": 1}),
        ("lora", 96, {"micro_batch": 2, "checkpointing": True}),
        ("qlora", 192, {"micro_batch": 1}),
    ],
    ids=["lora", "lora with checkpointing", "qlora"],
)
def test_m03_the_measured_peak_is_within_a_quarter_of_the_plan(
    method: str, length: int, train: dict[str, Any]
) -> None:
    base = resolve_base(None)
    quant = {"bits": 4} if method == "qlora" else {"bits": 16}
    recipe = recipe_of(method=method, quant=quant, data=data_of(max_length=length), train=train)
    plan = make_plan(recipe, model_shape(base), CPU)

    trial = measure(plan, base, recipe.lora.dropout)

    assert plan.memory.total == pytest.approx(trial.peak_bytes, rel=0.25)
