from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_adapters.errors import AdapterInvalidError, UnsupportedFormatError, UnsupportedPeftFeatureError
from loraplex_adapters.peft_config import parse_peft_config

Q = "model.layers.0.self_attn.q_proj"
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def config(**fields: Any) -> bytes:
    return json.dumps({**PLAIN, **fields}).encode()


def test_scaling_is_alpha_over_rank() -> None:
    assert parse_peft_config(config()).scaling_of(Q) == 2.0


def test_scaling_with_rslora_is_alpha_over_the_root_of_the_rank() -> None:
    assert parse_peft_config(config(use_rslora=True, r=8)).scaling_of(Q) == 8 / math.sqrt(8)


def test_the_first_matching_pattern_wins() -> None:
    settings = parse_peft_config(config(rank_pattern={"self_attn.q_proj": 2, "q_proj": 16}))

    assert settings.rank_of(Q) == 2
    assert settings.rank_of("q_proj") == 16
    assert settings.rank_of("model.layers.0.self_attn.xq_proj") == 4
    assert settings.max_rank() == 16


REFUSED: list[tuple[str, Any]] = [
    ("use_dora", True),
    ("modules_to_save", ["lm_head"]),
    ("bias", "all"),
    ("bias", "lora_only"),
    ("lora_bias", True),
    ("alora_invocation_tokens", [1, 2]),
    ("trainable_token_indices", [3]),
    ("layer_replication", [[0, 1]]),
    ("megatron_config", {"a": 1}),
    ("target_parameters", ["experts.w"]),
    ("fan_in_fan_out", True),
    ("init_lora_weights", "pissa"),
    ("init_lora_weights", "pissa_niter_4"),
    ("init_lora_weights", "olora"),
    ("init_lora_weights", "corda"),
    ("init_lora_weights", "loftq"),
    ("init_lora_weights", "lora_ga"),
    ("init_lora_weights", "mica"),
    ("init_lora_weights", 1),
    ("loftq_config", {"loftq_bits": 4}),
    ("corda_config", {"a": 1}),
    ("use_qalora", True),
    ("use_bdlora", {"nblocks": 2}),
    ("arrow_config", {"top_k": 2}),
    ("kasa_config", {"a": 1}),
    ("velora_config", {"a": 1}),
    ("monteclora_config", {"a": 1}),
    ("ensure_weight_tying", True),
    ("auto_map", {"AutoModel": "x.y"}),
    ("peft_type", "LOHA"),
    ("peft_type", None),
    ("task_type", "SEQ_CLS"),
    ("a_field_of_the_future", 1),
]


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=[f"{f}={v}" for f, v in REFUSED])
def test_what_is_not_served_is_refused_by_name(field: str, value: Any) -> None:
    kind = UnsupportedFormatError if field == "auto_map" else UnsupportedPeftFeatureError
    with pytest.raises(kind, match=field):
        parse_peft_config(config(**{field: value}))


def test_all_unsupported_features_are_listed_at_once() -> None:
    with pytest.raises(UnsupportedPeftFeatureError, match=r"bias 'all'.*use_dora \(DoRA\).*lora_bias"):
        parse_peft_config(config(use_dora=True, bias="all", lora_bias=True))


@pytest.mark.parametrize("value", [None, False, [], {}, "", 0])
def test_an_unknown_field_that_is_unset_is_harmless(value: Any) -> None:
    assert parse_peft_config(config(a_field_of_the_future=value)) == parse_peft_config(config())


OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("r", 0),
    ("r", -1),
    ("r", 2.0),
    ("r", True),
    ("r", "8"),
    ("r", 10**30),
    ("r", None),
    ("lora_alpha", 0),
    ("lora_alpha", 1e300),
    ("lora_alpha", "16"),
    ("lora_alpha", None),
    ("use_rslora", "yes"),
    ("rank_pattern", ["q_proj"]),
    ("rank_pattern", {"q_proj": 0}),
    ("alpha_pattern", {"q_proj": None}),
    ("target_modules", None),
    ("target_modules", []),
    ("target_modules", [""]),
    ("target_modules", [1]),
    ("target_modules", {"q_proj": 1}),
    ("layers_to_transform", [-1]),
    ("layers_to_transform", "all"),
    ("layers_pattern", 3),
    ("exclude_modules", [2]),
]


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE, ids=[f"{f}={v}" for f, v in OUT_OF_RANGE])
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(AdapterInvalidError, match=field) as caught:
        parse_peft_config(config(**{field: value}))

    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xff",
        b"{",
        b"[" * 100_000,
        config().replace(b"8", b"NaN"),
        config().replace(b"8", b"1e999"),
        config().replace(b"8", b"1" * 5000),
        b'{"r": 4, ' + config()[1:],
        config(revision="x" * 300_000),
    ],
    ids=str,
)
def test_bytes_that_are_no_sound_json_are_refused(raw: bytes) -> None:
    with pytest.raises(AdapterInvalidError):
        parse_peft_config(raw)


def test_the_order_of_target_modules_means_nothing() -> None:
    one = parse_peft_config(config(target_modules=["q_proj", "v_proj"]))
    other = parse_peft_config(config(target_modules=["v_proj", "q_proj"], lora_alpha=8.0))

    assert one.canonical() == other.canonical()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from([*PLAIN, *(field for field, _ in REFUSED + OUT_OF_RANGE)]), JSON_VALUES)
)
def test_any_fields_give_settings_or_an_invalid_adapter(fields: dict[str, Any]) -> None:
    try:
        settings = parse_peft_config(config(**fields))
    except AdapterInvalidError:
        return
    settings.selects(Q)
    assert math.isfinite(settings.scaling_of(Q))
