"""Rotary frequencies equal transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from loraplex_server.model.config import DecoderConfig
from loraplex_server.model.rope import inverse_frequencies, rope_table

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn with betas": {**YARN, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn with mscale": {**YARN, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.2},
    "yarn with a given factor": {**YARN, "attention_factor": 1.3},
    "yarn not truncated": {**YARN, "truncate": False},
    "yarn of short training": {**YARN, "original_max_position_embeddings": 8},
}


def configs(rope: dict[str, Any], theta: float, head_dim: int) -> tuple[LlamaConfig, DecoderConfig]:
    theirs = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters={**rope, "rope_theta": theta},
    )
    theirs.architectures = ["LlamaForCausalLM"]
    return theirs, DecoderConfig.from_hf(theirs.to_dict())


@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("kind", sorted(set(ROPES) - {"default"}))
def test_frequencies_and_attention_factor_equal_transformers(kind: str, head_dim: int, theta: float) -> None:
    theirs, config = configs(ROPES[kind], theta, head_dim)
    init = ROPE_INIT_FUNCTIONS[config.rope.rope_type]
    frequencies, factor = init(theirs, torch.device("cpu"))

    ours, our_factor = inverse_frequencies(config.rope, head_dim)

    torch.testing.assert_close(ours, frequencies, rtol=1e-6, atol=0)
    assert our_factor == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("kind", sorted(ROPES))
def test_the_table_equals_transformers_cosines_and_sines(kind: str) -> None:
    theirs, config = configs(ROPES[kind], 5e5, 64)
    positions = torch.arange(300)
    cos, sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1), positions.unsqueeze(0))

    our_cos, our_sin = rope_table(config, 300)

    assert our_cos.shape == (300, 32)
    torch.testing.assert_close(our_cos, cos[0, :, :32], rtol=0, atol=1e-5)
    torch.testing.assert_close(our_sin, sin[0, :, :32], rtol=0, atol=1e-5)
