"""From a plan to the configuration that transformers quantizes the base by."""

from __future__ import annotations

from typing import Any

from loraplex_trainer.plan.training_plan import TrainingPlan

_INT8_THRESHOLD = 6.0  # activations above it are outliers, multiplied in 16 bits
_HQQ_GROUP = 64


def quantization_kwargs(plan: TrainingPlan) -> dict[str, Any]:
    """Arguments of BitsAndBytesConfig; empty for a base that is not quantized by bitsandbytes.

    The base stays frozen: its weights are dequantized block by block to the compute dtype, and never trained.
    """
    import torch

    skipped = list(plan.unquantized)
    match plan.method:
        case "qlora-nf4":
            dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
            return {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": plan.quant_type,
                "bnb_4bit_use_double_quant": plan.double_quant,
                "bnb_4bit_compute_dtype": dtypes[plan.compute],
                "llm_int8_skip_modules": skipped,  # despite its name for 4 bits too
            }
        case "lora-int8":
            return {
                "load_in_8bit": True,
                "llm_int8_threshold": _INT8_THRESHOLD,
                "llm_int8_skip_modules": skipped,
            }
        case _:
            return {}


def quantization_config(plan: TrainingPlan) -> Any | None:
    """The `quantization_config` of `from_pretrained`; None for a base of 16 or 32 bits."""
    from transformers import BitsAndBytesConfig, HqqConfig

    if plan.method == "qlora-2bit":
        return HqqConfig(nbits=2, group_size=_HQQ_GROUP, skip_modules=list(plan.unquantized))
    kwargs = quantization_kwargs(plan)
    return BitsAndBytesConfig(**kwargs) if kwargs else None
