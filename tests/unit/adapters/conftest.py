"""Real PEFT adapters on a tiny random Llama, and registries on real databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.registry import AdapterRegistry
from tests.support.postgres import PostgresServer, postgres
from tests.support.tiny_peft import FFN, HIDDEN, KV, NUM_LAYERS, SaveAdapter, SavedAdapter, tiny_llama
from tests.unit.adapters.release_case import Clock

__all__ = ["postgres"]  # a fixture


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


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'registry.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.database() as url:
        yield url


@pytest.fixture
def clock() -> Clock:
    """The registry's clock."""
    return Clock()


@pytest.fixture
def registry(database_url: str, clock: Clock) -> Iterator[AdapterRegistry]:
    """An empty registry on each kind of database."""
    registry = AdapterRegistry(database_url, clock=clock)
    yield registry
    registry.close()
