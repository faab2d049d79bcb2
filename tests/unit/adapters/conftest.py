"""Real PEFT adapters on a tiny random Llama."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from tests.support.tiny_peft import FFN, HIDDEN, KV, NUM_LAYERS, SaveAdapter, SavedAdapter, tiny_llama


@pytest.fixture(scope="session")
def spec() -> BaseSpec:
    """The tiny Llama's shapes."""
    shapes = {
        "q_proj": (HIDDEN, HIDDEN),
        "k_proj": (HIDDEN, KV),
        "v_proj": (HIDDEN, KV),
        "o_proj": (HIDDEN, HIDDEN),
        "gate_proj": (HIDDEN, FFN),
        "up_proj": (HIDDEN, FFN),
        "down_proj": (FFN, HIDDEN),
    }
    assert tuple(shapes) == LORA_MODULES
    return BaseSpec("LlamaForCausalLM", "f" * 64, NUM_LAYERS, shapes)


@pytest.fixture(scope="session")
def save_adapter(tmp_path_factory: pytest.TempPathFactory) -> SaveAdapter:
    """Save a random adapter with the given LoraConfig fields into a new folder."""

    def save(*, seed: int = 1, **fields: Any) -> SavedAdapter:
        fields = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "r": 4, **fields}
        model = get_peft_model(tiny_llama(), LoraConfig(**fields))
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_()
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folder)
        return SavedAdapter(model, folder)

    return save


@pytest.fixture(scope="session")
def plain(save_adapter: SaveAdapter) -> SavedAdapter:
    """One plain rank 4 adapter. Not to be changed: copy the folder first."""
    return save_adapter()
