"""Predicts the peak memory of a training before anything is loaded."""

from __future__ import annotations

from loraplex_adapters.base_spec import LORA_MODULES
from loraplex_trainer.plan.activations import activation_bytes, logits_bytes
from loraplex_trainer.plan.shape import ModelShape
from loraplex_trainer.plan.training_plan import MemoryEstimate, Method, Optimizer
from loraplex_trainer.plan.training_setup import TrainingSetup

MARGIN = 0.10
"""A plan fits if it fits with this share on top: caches of the allocator, rows longer than planned."""

_NF4_CODE_BYTES = 1 / 2
_NF4_BLOCK = 64  # weights that share a scale
_SCALE_BLOCK = 256  # scales that double quantization puts under a scale of their own
NF4_BYTES = _NF4_CODE_BYTES + 4 / _NF4_BLOCK
"""Per weight, with fp32 scales: 0.5625."""
NF4_DOUBLE_BYTES = _NF4_CODE_BYTES + 1 / _NF4_BLOCK + 4 / (_NF4_BLOCK * _SCALE_BLOCK)
"""Per weight, with 8-bit scales: 0.516, or 4.127 bits."""
INT8_BYTES = 1.0
TWO_BIT_BYTES = 0.25 + 4 / 64
"""Per weight in 2 bits, with a 16-bit scale and zero for 64 of them."""

# Bytes of AdamW's two states, each in the dtype of the weight or in 8 bits with one fp32 scale for 256 of them.
_STATES_8BIT = 2 * (1 + 4 / 256)

_CUDA_CONTEXT = 10**9  # driver, kernels, cuBLAS workspaces
_CPU_CONTEXT = 640 * 2**20  # Python with torch, transformers, PEFT, TRL and datasets imported
# glibc's heap hands memory back late: what a step frees and takes stays resident to this part on top.
_CPU_HEAP = 1.35
_CHECKPOINT_BYTES = 2  # per parameter of the file, which is mapped while it is read


def base_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """The frozen base: its linear layers as the method holds them, all else in the compute dtype."""
    packed = [module for module in LORA_MODULES if module not in setup.unquantized]
    linear = shape.linear_parameters(packed)
    other = shape.parameters - linear
    return round(linear * _linear_bytes(setup.method, setup)) + other * setup.compute_bytes


def _linear_bytes(method: Method, setup: TrainingSetup) -> float:
    match method:
        case "lora-int8":
            return INT8_BYTES
        case "qlora-nf4":
            return NF4_DOUBLE_BYTES if setup.double_quant else NF4_BYTES
        case "qlora-2bit":
            return TWO_BIT_BYTES
        case _:
            return setup.compute_bytes


def adapter_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Weights, gradients and optimizer states of the adapter."""
    per_parameter = 2 * setup.lora_bytes + _state_bytes(setup.optimizer, setup.lora_bytes)
    if setup.compute_bytes < setup.lora_bytes:
        per_parameter += setup.compute_bytes  # autocast's copy
    return round(shape.trainable_parameters(setup.rank, setup.targets) * per_parameter)


def _state_bytes(optimizer: Optimizer, weight_bytes: int) -> float:
    return 2 * weight_bytes if optimizer == "adamw" else _STATES_8BIT


def estimate(shape: ModelShape, setup: TrainingSetup) -> MemoryEstimate:
    """The peak of a training with `setup`, its parts in bytes."""
    heap = _CPU_HEAP if setup.device == "cpu" else 1.0
    base, adapter = base_bytes(shape, setup), adapter_bytes(shape, setup)
    activations = round(heap * activation_bytes(shape, setup))
    logits = round(heap * logits_bytes(shape, setup))
    return MemoryEstimate(
        base=base,
        adapter=adapter,
        activations=activations,
        logits=logits,
        context=_CUDA_CONTEXT if setup.device == "cuda" else _CPU_CONTEXT,
        loading=max(0, _loading_bytes(shape, setup) - adapter - activations - logits),
    )


def _loading_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """On a CPU the mapped file is resident beside what is made of it; while quantizing, some of it in fp32 too."""
    if setup.device == "cuda":
        return 0
    return (2 if setup.is_quantized else 1) * _CHECKPOINT_BYTES * shape.parameters


def needed_bytes(memory: MemoryEstimate, correction: float = 1.0) -> int:
    """What must be free: the estimate, corrected by a measurement if there is one, and the margin."""
    return round(memory.total * correction * (1 + MARGIN))
