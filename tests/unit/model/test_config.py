"""A config.json of transformers 5 or older means the same decoder; what is not covered is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from loraplex_server.errors import BaseModelInvalidError, UnsupportedArchitectureError
from loraplex_server.model.config import SUPPORTED_ARCHITECTURES, DecoderConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}


def of(**fields: Any) -> DecoderConfig:
    return DecoderConfig.from_hf({**LLAMA, **fields})


def test_defaults_are_those_of_transformers() -> None:
    config = of()
    assert (config.num_kv_heads, config.head_dim) == (4, 16)
    assert (config.rope.rope_type, config.rope.theta) == ("default", 10000.0)
    assert config.sliding_window_of_layer == (None,) * 4
    assert config.eos_token_ids == ()
    assert not any((config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm, config.tie_embeddings))


@pytest.mark.parametrize("config_class", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_what_transformers_writes_is_read_as_it_means_it(config_class: Any) -> None:
    theirs = config_class(
        num_hidden_layers=3, rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, **YARN}
    )
    theirs.architectures = [config_class.__name__.replace("Config", "ForCausalLM")]
    ours = DecoderConfig.from_hf(json.loads(theirs.to_json_string()))
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert (ours.rope.rope_type, ours.rope.theta) == ("yarn", 5e5)
    assert ours.rope.scaling["factor"] == 4.0


@pytest.mark.parametrize("type_key", ["rope_type", "type"])
def test_older_and_newer_rope_settings_mean_the_same(type_key: str) -> None:
    older = of(rope_theta=5e5, rope_scaling={type_key: "yarn", **YARN})
    newer = of(rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, **YARN})
    assert older.rope == newer.rope


def test_a_trained_length_beside_the_scaling_is_found() -> None:
    config = of(original_max_position_embeddings=512, rope_scaling={"type": "yarn", "factor": 2.0})
    assert config.rope.scaling["original_max_position_embeddings"] == 512


@pytest.mark.parametrize(
    ("fields", "biases"),
    [
        ({"attention_bias": True}, (True, True, False)),
        ({"mlp_bias": True}, (False, False, True)),
        ({"architectures": ["Qwen2ForCausalLM"]}, (True, False, False)),
        ({"architectures": ["Qwen3ForCausalLM"]}, (False, False, False)),
        ({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, (True, True, False)),
    ],
)
def test_biases_are_where_the_architecture_has_them(fields: dict[str, Any], biases: tuple[bool, ...]) -> None:
    config = of(**fields)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == biases


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 8}, (8, 8, 8, 8)),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, (None,) * 4),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8}, (None,) * 4),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 8,
                "use_sliding_window": True,
                "max_window_layers": 3,
            },
            (None, None, None, 8),
        ),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 8, None, 8),
        ),
    ],
)
def test_each_layer_has_its_own_window(fields: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert of(**fields).sliding_window_of_layer == windows


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": None, "model_type": "bert"}, "model type bert"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type dynamic"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type longrope"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
    ],
)
def test_what_would_give_wrong_logits_is_refused_in_one_line(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=named) as raised:
        of(**fields)
    assert "\n" not in str(raised.value)
    for architecture in SUPPORTED_ARCHITECTURES:
        assert architecture in str(raised.value)


@pytest.mark.parametrize("size", ["num_hidden_layers", "vocab_size", "max_position_embeddings"])
@pytest.mark.parametrize("value", [None, 0, "many"])
def test_a_missing_or_senseless_size_is_refused_by_name(size: str, value: Any) -> None:
    with pytest.raises(BaseModelInvalidError, match=size):
        of(**{size: value})


def test_end_of_sequence_ids_of_the_generation_config_win(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": 2}))
    assert DecoderConfig.from_folder(tmp_path).eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert DecoderConfig.from_folder(tmp_path).eos_token_ids == (5, 6)


@pytest.mark.parametrize(
    ("eos", "kept"),
    [(128, ()), ([127, 128, 2, -1], (127, 2)), (-1, ()), (["</s>", 5], (5,)), ([127, 0], (127, 0))],
)
def test_end_of_sequence_ids_that_no_token_has_are_left_out_with_a_warning(
    eos: Any, kept: tuple[int, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Published models list some beyond their vocabulary; banning one before min_tokens would be no logit's place."""
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))

    assert DecoderConfig.from_folder(tmp_path).eos_token_ids == kept

    left_out = [
        str(token_id) for token_id in (eos if isinstance(eos, list) else [eos]) if token_id not in kept
    ]
    assert bool(caplog.records) == bool(left_out)
    for text in (*left_out, "128", "eos_token_id") if left_out else ():
        assert text in caplog.text


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_config_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BaseModelInvalidError, match=r"config\.json") as raised:
        DecoderConfig.from_folder(tmp_path)
    assert "\n" not in str(raised.value)
