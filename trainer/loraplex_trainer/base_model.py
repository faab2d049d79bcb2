"""The frozen base as transformers sees it, in each precision that it is trained or served in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loraplex_adapters.base_spec import LORA_MODULES
from loraplex_server.model.int8 import quantize_rows
from loraplex_trainer.errors import QuantizedBaseError
from loraplex_trainer.plan.quantization import quantization_config
from loraplex_trainer.plan.training_plan import TrainingPlan

Precision = Literal["fp32", "bf16", "int8", "nf4"]
"""How the base's weights are rounded; int8 and nf4 compute in bf16 (CUDA) or fp32 (CPU)."""

_NF4_BLOCK = 64
_OUTPUT_LAYER = "lm_head"  # often tied to the embedding, and never quantized
_LINEAR_OF = {"lora-int8": "Linear8bitLt", "qlora-nf4": "Linear4bit", "qlora-2bit": "HQQLinear"}


def load_tokenizer(folder: Path) -> Any:
    """The base's tokenizer with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_for_training(folder: Path, plan: TrainingPlan) -> Any:
    """The frozen base as the plan holds it, in evaluation mode, without gradients.

    Raises QuantizedBaseError when its modules are not quantized as the plan says.
    """
    from transformers import AutoModelForCausalLM

    device = torch.device(plan.device)
    options: dict[str, Any] = {}
    config = quantization_config(plan)
    if config is not None:
        options = {"quantization_config": config, "device_map": {"": device}}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=compute_dtype(plan), local_files_only=True, **options
    )
    model = model if options else model.to(device)
    model.requires_grad_(False)
    check_census(census(model), plan)
    _keep_trainable(model)
    return model.eval()


def _keep_trainable(model: Any) -> None:
    """Forbids bitsandbytes to repack 4-bit weights for inference on some CPUs.

    It does so at the first forward pass in evaluation mode, rounds the scales to bf16, and has no gradient after: each
    validation between two epochs would change the base and cut the gradient off.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def compute_dtype(plan: TrainingPlan) -> torch.dtype:
    """Dtype of the matrix products."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[plan.compute]


def census(model: Any) -> dict[str, frozenset[str]]:
    """Last name of each linear module, of LoRA and the output layer -> its classes, e.g. {"Linear4bit"}."""
    found: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in (*LORA_MODULES, _OUTPUT_LAYER):
            found.setdefault(last, set()).add(type(module).__name__)
    return {name: frozenset(kinds) for name, kinds in found.items()}


def check_census(found: Mapping[str, frozenset[str]], plan: TrainingPlan) -> None:
    """Raises QuantizedBaseError naming the modules that are not of the class that the plan makes them."""
    quantized = _LINEAR_OF.get(plan.method, "Linear")
    wrong = []
    for name, kinds in sorted(found.items()):
        wanted = "Linear" if name in (*plan.unquantized, _OUTPUT_LAYER) else quantized
        if kinds != {wanted}:
            wrong.append(f"{name} is {'/'.join(sorted(kinds))}, not {wanted}")
    if wrong:
        raise QuantizedBaseError(
            f"the base was not loaded as the plan ({plan.method}) says: {'; '.join(wrong)}; check quant.skip, "
            "and the version of bitsandbytes"
        )


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
