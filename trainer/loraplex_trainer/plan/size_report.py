"""How small an adapter is beside its base, and what that spares where several domains share one base."""

from __future__ import annotations

from dataclasses import dataclass

from loraplex_trainer.plan.shape import ModelShape
from loraplex_trainer.plan.training_plan import TrainingPlan

_BASE_BYTES = 2  # per parameter as a checkpoint is stored
_NUM_DOMAINS = 3


@dataclass(frozen=True, slots=True)
class SizeReport:
    """Bytes on disk."""

    adapter_bytes: int
    base_bytes: int  # in 16 bits
    share: float  # adapter ÷ base
    saved_share: float  # of three adapted copies of the base, by one base and three adapters


def size_report(shape: ModelShape, plan: TrainingPlan) -> SizeReport:
    """The package's weights as they are written: bf16 over a quantized base, fp32 else."""
    per_parameter = 4 if plan.method in ("lora-bf16", "lora-fp32") else 2
    adapter = plan.trainable_parameters * per_parameter
    base = shape.parameters * _BASE_BYTES
    shared = base + _NUM_DOMAINS * adapter
    return SizeReport(adapter, base, adapter / base, 1 - shared / (_NUM_DOMAINS * base))
