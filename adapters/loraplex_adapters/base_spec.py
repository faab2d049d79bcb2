"""What an adapter needs to know of a base model: which modules it has, their shapes, and its identity."""

from __future__ import annotations

from dataclasses import dataclass

LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear modules of a decoder layer that can carry LoRA, in the order of the forward pass."""


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """Shapes and identity of one base model. Immutable; cheap to build from a config.json, needs no
    weights.
    """

    architecture: str  # "LlamaForCausalLM", …
    fingerprint: str  # SHA-256, hex
    num_layers: int
    module_shapes: dict[str, tuple[int, int]]  # module of LORA_MODULES -> (in_features, out_features)
