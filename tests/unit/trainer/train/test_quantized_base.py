from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraplex_trainer.base_model import census, check_census, load_for_training
from loraplex_trainer.errors import QuantizedBaseError
from loraplex_trainer.recipe.sections import ATTENTION_MODULES, MLP_MODULES
from loraplex_trainer.train.adapter import WEIGHTS_FILE

from .conftest import Trains, built, colour_rows, tiny_plan, tiny_recipe


@pytest.mark.parametrize(
    ("method", "kind"), [("lora-int8", "Linear8bitLt"), ("qlora-nf4", "Linear4bit"), ("lora-fp32", "Linear")]
)
@pytest.mark.parametrize("skipped", [(), ATTENTION_MODULES], ids=["all", "but-attention"])
def test_exactly_the_modules_of_the_plan_are_quantized(
    tiny_base: Path, method: str, kind: str, skipped: tuple[str, ...]
) -> None:
    model = load_for_training(tiny_base, tiny_plan(method=method, unquantized=(*skipped, "lm_head")))
    found = census(model)

    assert {name: found[name] for name in MLP_MODULES} == {name: frozenset({kind}) for name in MLP_MODULES}
    attention = "Linear" if skipped else kind
    assert {name: found[name] for name in ATTENTION_MODULES} == {
        name: frozenset({attention}) for name in ATTENTION_MODULES
    }
    assert type(model.lm_head).__name__ == "Linear"


def test_a_base_that_is_not_quantized_as_planned_is_refused_by_module(tiny_base: Path) -> None:
    model = load_for_training(tiny_base, tiny_plan())

    with pytest.raises(QuantizedBaseError, match="down_proj is Linear, not Linear4bit"):
        check_census(census(model), tiny_plan(method="qlora-nf4"))


def test_double_quantization_quantizes_the_scales(tiny_base: Path) -> None:
    nested = [
        load_for_training(
            tiny_base, tiny_plan(method="qlora-nf4", double_quant=double, unquantized=("lm_head",))
        )
        .model.layers[0]
        .mlp.up_proj.weight.quant_state.nested
        for double in (True, False)
    ]

    assert nested == [True, False]


def test_bf16_is_the_dtype_of_the_base_where_the_plan_says_so(tiny_base: Path) -> None:
    model = load_for_training(tiny_base, tiny_plan(method="lora-bf16", compute="bf16"))

    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["qlora-nf4", "lora-int8"])
def test_an_adapter_over_a_quantized_base_is_written_in_bf16_and_is_the_best_checkpoint(
    train_tiny: Trains, method: str
) -> None:
    recipe = tiny_recipe(train={"epochs": {"min": 1, "max": 2}})
    data = built(colour_rows(6)[:4], colour_rows(6)[4:])
    plan: Any = tiny_plan(method=method, unquantized=("lm_head",))
    reports = [train_tiny(name, recipe, data, plan) for name in ("a", "b")]
    best = load_file(reports[0].run_folder / "best" / WEIGHTS_FILE)
    step = int(2 * (reports[0].best_epoch or 0))
    checkpoint = load_file(reports[0].run_folder / f"checkpoints/00-domain/checkpoint-{step}" / WEIGHTS_FILE)

    assert {tensor.dtype for tensor in best.values()} == {torch.bfloat16}
    assert all(torch.equal(best[key], checkpoint[key].to(torch.bfloat16)) for key in best)
    again = load_file(reports[1].run_folder / "best" / WEIGHTS_FILE)
    assert all(torch.equal(best[key], again[key]) for key in best)


def test_evaluating_between_epochs_leaves_the_quantized_base_as_it_was(tiny_base: Path) -> None:
    model = load_for_training(tiny_base, tiny_plan(method="qlora-nf4", unquantized=("lm_head",)))
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        model.eval()(torch.tensor([[1, 5, 6]]))

    # bitsandbytes repacks for inference where the CPU has the instructions, and gradients end there.
    assert torch.equal(weight, before)
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules())
