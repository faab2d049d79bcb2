"""Rotary position embedding: frequencies and tables for the supported types.

llama3: Llama 3.1 model card; yarn: Peng et al., "YaRN: Efficient Context Window Extension", 2023, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from loraplex_server.model.config import DecoderConfig, RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """(frequencies [head_dim / 2] fp32, factor on cos and sin)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1.0 / (rope.theta**exponents)
    match rope.rope_type:
        case "linear":
            return plain / rope.scaling["factor"], 1.0
        case "llama3":
            return _llama3(plain, rope), 1.0
        case "yarn":
            return _yarn(plain, rope, head_dim)
        case _:
            return plain, 1.0


def rope_table(config: DecoderConfig, num_positions: int) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [num_positions, head_dim / 2] fp32, the attention factor included."""
    frequencies, factor = inverse_frequencies(config.rope, config.head_dim)
    angles = torch.outer(torch.arange(num_positions).float(), frequencies)
    return angles.cos() * factor, angles.sin() * factor


def _llama3(plain: Tensor, rope: RopeConfig) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    low, high = rope.scaling["low_freq_factor"], rope.scaling["high_freq_factor"]
    trained = rope.scaling["original_max_position_embeddings"]
    stretched = plain / rope.scaling["factor"]
    wavelengths = 2 * math.pi / plain
    blend = (trained / wavelengths - low) / (high - low)
    between = (1 - blend) * stretched + blend * plain
    result = torch.where(wavelengths > trained / low, stretched, plain)
    is_between = (wavelengths <= trained / low) & (wavelengths >= trained / high)
    return torch.where(is_between, between, result)


def _yarn(plain: Tensor, rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Interpolate the dimensions that turn slowly, keep those that turn fast, ramp between."""
    scaling = rope.scaling
    trained = scaling["original_max_position_embeddings"]
    factor = scaling["factor"]
    beta_fast, beta_slow = scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1

    def dimension_of(rotations: float) -> float:
        return head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(beta_fast), dimension_of(beta_slow)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2).float() - low) / (high - low)).clamp(0, 1)
    frequencies = plain / factor * ramp + plain * (1 - ramp)
    return frequencies, _yarn_attention_factor(scaling, factor)


def _yarn_attention_factor(scaling: dict[str, float], factor: float) -> float:
    explicit = scaling.get("attention_factor")
    if explicit is not None:
        return float(explicit)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and all_dim:
        return magnitude(mscale) / magnitude(all_dim)
    return magnitude(1.0)
