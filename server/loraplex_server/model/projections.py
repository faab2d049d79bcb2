"""The packed projections of a decoder layer and the modules in them.

q, k and v share one product, gate and up another: fewer, larger reads of the quantized weight, and one LoRA shrink for
all modules that see the same input.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraplex_adapters.base_spec import BaseSpec

PROJECTIONS: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""Projection -> its modules, in the order in which their outputs are concatenated."""


@dataclass(frozen=True, slots=True)
class ModuleSlice:
    """Where a module's output lies in its projection's."""

    projection: str
    column_start: int
    column_stop: int


def module_slices(spec: BaseSpec) -> dict[str, ModuleSlice]:
    """Module name -> its slice, from the shapes of the base."""
    slices = {}
    for projection, modules in PROJECTIONS.items():
        column = 0
        for module in modules:
            out_features = spec.module_shapes[module][1]
            slices[module] = ModuleSlice(projection, column, column + out_features)
            column += out_features
    return slices
