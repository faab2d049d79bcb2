"""Will adapters fit, how many at once, and what they cost: from shapes alone, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec


@dataclass(frozen=True, slots=True)
class AdapterGroup:
    """Adapters of one kind."""

    count: int
    rank: int
    target_modules: tuple[str, ...] = LORA_MODULES


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What one kind takes."""

    bytes_each: int
    resident_alone: int  # how many of this kind, with no other, are resident at once
    fits: bool
    step_bytes_share: float  # bytes that one active adapter adds to a decode step / bytes of the base


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What all of them take."""

    groups: tuple[GroupPlan, ...]
    resident_together: int  # taken smallest first
    all_resident: bool


def plan_adapters(
    groups: Sequence[AdapterGroup],
    spec: BaseSpec,
    *,
    arena_bytes: int,
    element_bytes: int,
    adapter_slots: int,
    base_bytes: int,
) -> AdapterPlan:
    """Count bytes and slots.

    element_bytes  of one weight in the arena
    base_bytes     of the resident base, which a decode step reads once

    Extents are moved together when they must be, so that no byte of the arena is lost between them.
    """
    sizes = [_elements(group, spec) * element_bytes for group in groups]
    plans = tuple(
        GroupPlan(
            bytes_each=size,
            resident_alone=min(group.count, adapter_slots, arena_bytes // size),
            fits=size <= arena_bytes,
            step_bytes_share=size / base_bytes,
        )
        for group, size in zip(groups, sizes, strict=True)
    )
    together = _resident_together(groups, sizes, arena_bytes, adapter_slots)
    return AdapterPlan(plans, together, together == sum(group.count for group in groups))


def _elements(group: AdapterGroup, spec: BaseSpec) -> int:
    return spec.num_layers * sum(
        group.rank * sum(spec.module_shapes[module]) for module in group.target_modules
    )


def _resident_together(
    groups: Sequence[AdapterGroup], sizes: Sequence[int], arena_bytes: int, adapter_slots: int
) -> int:
    resident = 0
    for size, count in sorted(zip(sizes, (group.count for group in groups), strict=True)):
        taken = min(count, adapter_slots - resident, arena_bytes // size)
        arena_bytes -= taken * size
        resident += taken
        if taken < count:
            break  # the next kind is no smaller
    return resident
