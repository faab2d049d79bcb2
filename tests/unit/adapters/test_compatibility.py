from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.compatibility import load_lora_weights, match_to_base, module_path
from loraplex_adapters.errors import AdapterIncompatibleError, UnsupportedPeftFeatureError
from loraplex_adapters.package import WEIGHTS_FILE, read_package
from tests.support.tiny_peft import SaveAdapter, SavedAdapter, with_config, with_tensors

VARIANTS: list[dict[str, Any]] = [
    {"lora_alpha": 16},
    {"lora_alpha": 16, "use_rslora": True},
    {"rank_pattern": {"q_proj": 2, "v_proj": 8}},
    {"alpha_pattern": {"layers.1.self_attn.q_proj": 3}, "lora_alpha": 5},
    {"rank_pattern": {r"layers\.[1-9]\..*": 2, "q_proj": 6}, "use_rslora": True},
    {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"proj": 9, "q_proj": 1}},
    {"rank_pattern": {"o_proj|q_proj": 2}, "alpha_pattern": {"attn.q_proj": 7}},
    {"rank_pattern": {"q": 2}, "alpha_pattern": {"self_attn": 7}},  # match no whole part: no effect
    {"target_modules": "all-linear"},
    {"target_modules": r".*\.1\..*(up|down)_proj"},
    {"target_modules": ["q_proj", "mlp.up_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    {"target_modules": r".*(q|v)_proj", "exclude_modules": r".*\.0\..*"},
    {"target_modules": list(LORA_MODULES), "exclude_modules": ["gate_proj", "model.layers.0.mlp.up_proj"]},
    {"task_type": None},
    {"init_lora_weights": "gaussian"},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=[json.dumps(v) for v in VARIANTS])
def test_modules_ranks_scaling_and_tensors_equal_those_of_peft(
    save_adapter: SaveAdapter, spec: BaseSpec, fields: dict[str, Any]
) -> None:
    saved = save_adapter(**fields)
    expected = {
        name.removeprefix("base_model.model."): module
        for name, module in saved.model.named_modules()
        if hasattr(module, "lora_A")
    }

    weights = load_lora_weights(saved.folder, spec, max_rank=16)

    served = {module_path(*place): lora for place, lora in weights.modules.items()}
    assert served.keys() == expected.keys()
    assert weights.rank == max(lora.rank for lora in served.values())
    for path, lora in served.items():
        assert lora.scaling == expected[path].scaling["default"]
        assert lora.rank == expected[path].r["default"]
        assert torch.equal(lora.a, expected[path].lora_A["default"].weight)
        assert torch.equal(lora.b, expected[path].lora_B["default"].weight)


def test_keys_with_the_adapter_name_default_are_read_too(
    plain: SavedAdapter, spec: BaseSpec, tmp_path: Path
) -> None:
    tensors = load_file(plain.folder / WEIGHTS_FILE)
    renamed = {key.replace(".weight", ".default.weight"): tensor for key, tensor in tensors.items()}

    weights = load_lora_weights(with_tensors(plain, tmp_path, renamed), spec, max_rank=4)

    assert len(weights.modules) == 4


def test_a_dtype_is_kept_as_stored(plain: SavedAdapter, spec: BaseSpec, tmp_path: Path) -> None:
    tensors = {k: t.bfloat16() for k, t in load_file(plain.folder / WEIGHTS_FILE).items()}

    weights = load_lora_weights(with_tensors(plain, tmp_path, tensors), spec, max_rank=4)

    assert weights.modules[0, "q_proj"].a.dtype == torch.bfloat16


def test_all_misfits_are_listed_and_the_list_is_bounded(save_adapter: SaveAdapter, spec: BaseSpec) -> None:
    package = read_package(save_adapter(target_modules=list(LORA_MODULES)).folder)
    smaller = replace(spec, num_layers=1, module_shapes={**spec.module_shapes, "q_proj": (8, 8)})

    with pytest.raises(AdapterIncompatibleError) as caught:
        match_to_base(package, smaller, max_rank=2)

    message = str(caught.value)
    assert "17 misfits" in message  # 14 tensors of layer 1, A and B of q_proj, the rank
    assert "names layer 1; the base has 1" in message
    assert message.count(";") <= 20
    assert "and 9 more" in message


def test_a_tensor_that_no_target_module_covers_is_a_misfit(
    plain: SavedAdapter, spec: BaseSpec, tmp_path: Path
) -> None:
    package = read_package(with_config(plain, tmp_path, target_modules=["q_proj"]))

    with pytest.raises(AdapterIncompatibleError, match=r"v_proj.lora_A.weight' is not among"):
        match_to_base(package, spec, max_rank=16)


def test_a_target_module_without_tensors_is_a_misfit(
    plain: SavedAdapter, spec: BaseSpec, tmp_path: Path
) -> None:
    package = read_package(with_config(plain, tmp_path, target_modules=["q_proj", "v_proj", "up_proj"]))

    with pytest.raises(AdapterIncompatibleError, match=r"'model.layers.1.mlp.up_proj' has no tensors"):
        match_to_base(package, spec, max_rank=16)


def test_a_target_module_that_the_base_does_not_have_is_a_misfit(
    plain: SavedAdapter, spec: BaseSpec, tmp_path: Path
) -> None:
    package = read_package(
        with_config(plain, tmp_path, target_modules=["q_proj", "v_proj", "query_key_value"])
    )

    with pytest.raises(AdapterIncompatibleError, match="'query_key_value' does not exist"):
        match_to_base(package, spec, max_rank=16)


def test_lora_on_the_output_layer_is_refused(
    save_adapter: SaveAdapter, spec: BaseSpec, tmp_path: Path
) -> None:
    saved = save_adapter(target_modules=["q_proj", "lm_head"])
    lora_only = {k: t for k, t in load_file(saved.folder / WEIGHTS_FILE).items() if "lora_" in k}
    package = read_package(with_tensors(saved, tmp_path, lora_only))

    with pytest.raises(AdapterIncompatibleError, match="embedding or the output layer"):
        match_to_base(package, spec, max_rank=16)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_weights_of_the_embedding_or_the_output_layer_are_refused(
    save_adapter: SaveAdapter, module: str
) -> None:
    folder = save_adapter(target_modules=["q_proj", module]).folder

    with pytest.raises(UnsupportedPeftFeatureError, match="embedding or the output layer"):
        read_package(folder)


@pytest.mark.parametrize("part", ["A", "B"])
def test_half_a_pair_is_a_misfit(plain: SavedAdapter, spec: BaseSpec, tmp_path: Path, part: str) -> None:
    tensors = load_file(plain.folder / WEIGHTS_FILE)
    del tensors[f"base_model.model.model.layers.1.self_attn.q_proj.lora_{part}.weight"]
    package = read_package(with_tensors(plain, tmp_path, tensors))

    with pytest.raises(AdapterIncompatibleError, match=f"but no lora_{part}"):
        match_to_base(package, spec, max_rank=16)


def test_a_key_given_with_and_without_default_is_a_misfit(
    plain: SavedAdapter, spec: BaseSpec, tmp_path: Path
) -> None:
    tensors = load_file(plain.folder / WEIGHTS_FILE)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    tensors[key.replace(".weight", ".default.weight")] = tensors[key].clone()
    package = read_package(with_tensors(plain, tmp_path, tensors))

    with pytest.raises(AdapterIncompatibleError, match="occurs twice"):
        match_to_base(package, spec, max_rank=16)
