"""M02: how many parameters there are, and how many are trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from loraplex_adapters.base_spec import LORA_MODULES
from loraplex_trainer.errors import RecipeError
from loraplex_trainer.plan.shape import PRESETS, ModelShape, model_shape

BILLIONS = {"1.3b": 1.345, "7b": 6.738, "13b": 13.016, "30b": 32.529, "65b": 65.286, "70b": 68.977}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_has_the_parameters_that_its_name_says(name: str) -> None:
    assert PRESETS[name].parameters / 1e9 == pytest.approx(BILLIONS[name], abs=0.001)


def test_m02_two_factors_of_rank_64_are_an_eighth_of_a_square_of_1024() -> None:
    square = ModelShape("square", 1, 1024, 1024, 8, 8, 128, 1)

    assert square.trainable_parameters(64, ["q_proj"]) * 8 == square.linear_parameters(["q_proj"])


def test_m02_the_count_is_the_one_of_peft(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    shape = model_shape(tiny_base)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())

    for targets in (LORA_MODULES, ("q_proj", "down_proj")):
        peft = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
            LoraConfig(r=3, target_modules=list(targets), task_type="CAUSAL_LM"),
        )
        assert shape.trainable_parameters(3, targets) == peft.get_nb_trainable_parameters()[0]


def test_m03_rank_32_on_all_linear_layers_of_7b_is_80_million_and_rank_8_is_20() -> None:
    assert PRESETS["7b"].trainable_parameters(32, LORA_MODULES) == 79_953_920
    assert PRESETS["7b"].trainable_parameters(8, LORA_MODULES) == 19_988_480


@given(
    rank=st.integers(1, 256), layers=st.integers(1, 80), hidden=st.integers(1, 64), inner=st.integers(1, 500)
)
def test_m02_the_count_grows_with_rank_and_sizes_alike(
    rank: int, layers: int, hidden: int, inner: int
) -> None:
    shape = ModelShape("any", layers, hidden, inner, 1, 1, hidden, 7)

    count = shape.trainable_parameters(rank, LORA_MODULES)

    assert count == rank * layers * (4 * 2 * hidden + 3 * (hidden + inner))


def test_what_is_neither_preset_nor_folder_is_refused_with_the_presets() -> None:
    with pytest.raises(RecipeError, match=r"no base '6b'.*1\.3b"):
        model_shape("6b")
