"""The frozen base as transformers sees it, in each precision that it is trained or served in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loraplex_server.model.int8 import quantize_rows

Precision = Literal["fp32", "bf16", "int8", "nf4"]
"""How the base's weights are rounded; int8 and nf4 compute in bf16 (CUDA) or fp32 (CPU)."""

_NF4_BLOCK = 64


def load_tokenizer(folder: Path) -> Any:
    """The base's tokenizer with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_for_training(folder: Path, quant: Literal["none", "nf4"], device: torch.device) -> Any:
    """The base to train on: bf16 on CUDA, fp32 on CPU; NF4 with double quantization for QLoRA."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {}
    dtype = _compute_dtype(device)
    if quant == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": device}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **options)
    return model if quant == "nf4" else model.to(device)


def load_for_evaluation(folder: Path, precision: Precision, device: torch.device) -> Any:
    """The base with its weights rounded as the server rounds them in `precision`, activations unrounded."""
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if precision == "fp32" else _compute_dtype(device)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
    if precision in ("int8", "nf4"):
        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear):
                    # The server keeps the output layer, often tied to the embedding, in 8 bits at least.
                    rounding = "int8" if "lm_head" in name else precision
                    module.weight.copy_(_rounded(module.weight, rounding))
    return model


def _rounded(weight: Tensor, precision: str) -> Tensor:
    if precision == "int8":
        quantized, scale = quantize_rows(weight)
        return (quantized.float() * scale).to(weight.dtype)
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.contiguous(), blocksize=_NF4_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    restored: Tensor = dequantize_4bit(packed, state)
    return restored.to(weight.dtype)


def _compute_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def default_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
