"""Which formats the weights, activations and cache of a decoder have on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from loraplex_server.errors import BaseModelInvalidError
from loraplex_server.model.int8 import fast_int8_product

ResolvedQuantization = Literal["nf4", "int8", "bf16", "fp32"]
QUANTIZATIONS: tuple[ResolvedQuantization, ...] = ("fp32", "bf16", "int8", "nf4")


@dataclass(frozen=True, slots=True)
class Numerics:
    """Formats of one loaded decoder."""

    quantization: ResolvedQuantization
    device: torch.device
    compute_dtype: torch.dtype  # of activations, norms, biases and LoRA weights
    kv_dtype: torch.dtype
    reason: str  # of this quantization, for people


def resolve_numerics(quantization: str, device: str) -> Numerics:
    """Resolve `auto`: CUDA if there is a GPU; NF4 there, and on a CPU what its instructions make fast.

    Raises BaseModelInvalidError for an unknown quantization.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cpu = device == "cpu"
    reason = "asked for"
    if quantization == "auto":
        quantization, reason = _fastest_on_cpu() if on_cpu else ("nf4", "the smallest on a GPU")
    # The int8 product needs its input in no float format at all; fp32 around it costs a CPU nothing.
    around_int8 = torch.float32 if on_cpu else torch.bfloat16
    formats: dict[ResolvedQuantization, tuple[torch.dtype, torch.dtype]] = {
        "fp32": (torch.float32, torch.float32),
        "bf16": (torch.bfloat16, torch.bfloat16),
        "nf4": (torch.bfloat16, torch.bfloat16),
        "int8": (around_int8, torch.bfloat16),
    }
    for name, (compute_dtype, kv_dtype) in formats.items():
        if name == quantization:
            return Numerics(name, torch.device(device), compute_dtype, kv_dtype, reason)
    raise BaseModelInvalidError(f"quantization '{quantization}' is not one of auto, {', '.join(formats)}")


def _fastest_on_cpu() -> tuple[ResolvedQuantization, str]:
    """What decodes fastest on this CPU, and why. Decided by its instructions, so that every start takes the same."""
    product = fast_int8_product()
    if product is not None:
        return "int8", f"this CPU multiplies int8 fast: {product}"
    cpu = torch.cpu.get_capabilities()
    unit = next((name for name in ("amx_bf16", "avx512_bf16") if cpu.get(name)), None)
    if unit is not None:
        return "bf16", f"this CPU multiplies bf16 fast ({unit}) and int8 does not"
    return "fp32", "this CPU has fast products for neither int8 nor bf16"
