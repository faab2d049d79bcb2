"""Which formats the weights, activations and cache of a decoder have on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from loraplex_server.errors import BaseModelInvalidError
from loraplex_server.model.int8 import has_exact_int8_product

ResolvedQuantization = Literal["nf4", "int8", "bf16", "fp32"]
QUANTIZATIONS: tuple[ResolvedQuantization, ...] = ("fp32", "bf16", "int8", "nf4")


@dataclass(frozen=True, slots=True)
class Numerics:
    """Formats of one loaded decoder."""

    quantization: ResolvedQuantization
    device: torch.device
    compute_dtype: torch.dtype  # of activations, norms, biases and LoRA weights
    kv_dtype: torch.dtype


def resolve_numerics(quantization: str, device: str) -> Numerics:
    """Resolve `auto`: CUDA if there is a GPU; NF4 there, and on a CPU int8, by far the fastest where it is exact.

    Raises BaseModelInvalidError for an unknown quantization.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cpu = device == "cpu"
    if quantization == "auto":
        quantization = ("int8" if has_exact_int8_product() else "fp32") if on_cpu else "nf4"
    resolved: dict[str, Numerics] = {
        "fp32": Numerics("fp32", torch.device(device), torch.float32, torch.float32),
        "bf16": Numerics("bf16", torch.device(device), torch.bfloat16, torch.bfloat16),
        "nf4": Numerics("nf4", torch.device(device), torch.bfloat16, torch.bfloat16),
        # The int8 product needs its input in no float format at all; fp32 around it costs a CPU nothing.
        "int8": Numerics(
            "int8", torch.device(device), torch.float32 if on_cpu else torch.bfloat16, torch.bfloat16
        ),
    }
    if quantization not in resolved:
        raise BaseModelInvalidError(
            f"quantization '{quantization}' is not one of auto, {', '.join(resolved)}"
        )
    return resolved[quantization]
