"""Moving adapters together changes no weight, at no moment, in the CPU's arena and in the GPU's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import Place
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout, AdapterMemory, PackedAdapter
from loraplex_server.engine.adapter_slots import AdapterSlots
from loraplex_server.engine.gpu_adapters import GpuAdapterArena, GpuAdapterLayout
from loraplex_server.kernels.lora_tables import ARENA_UNIT
from loraplex_server.model.projections import PROJECTIONS

SPEC = BaseSpec(
    "LlamaForCausalLM",
    "f" * 64,
    2,
    {
        "q_proj": (16, 24),
        "k_proj": (16, 8),
        "v_proj": (16, 8),
        "o_proj": (24, 16),
        "gate_proj": (16, 40),
        "up_proj": (16, 40),
        "down_proj": (40, 16),
    },
)
NUM_SLOTS = 6
CAPACITY = 12_000
PLACES = [(layer, module) for layer in range(2) for module in SPEC.module_shapes]


class Seen(Protocol):
    """An arena, and what a step would find in one of its slots."""

    arena: AdapterMemory

    def weights(self, slot: int) -> list[torch.Tensor]: ...


class CpuSeen:
    def __init__(self) -> None:
        self.layout = AdapterLayout(SPEC)
        self.cpu = AdapterArena(CAPACITY, torch.float32, self.layout)
        self.arena: AdapterMemory = self.cpu

    def weights(self, slot: int) -> list[torch.Tensor]:
        found = []
        for projections in self.cpu.layers_of_slot(slot):
            for projection in projections.values():
                found += [projection.a.flatten(), *(part.b.flatten() for part in projection.parts)]
        return found


class GpuSeen:
    def __init__(self) -> None:
        device = torch.device("cpu")
        self.gpu = GpuAdapterArena(CAPACITY, NUM_SLOTS, torch.bfloat16, device, GpuAdapterLayout(SPEC), SPEC)
        self.arena: AdapterMemory = self.gpu

    def weights(self, slot: int) -> list[torch.Tensor]:
        """As the kernels follow the records."""
        found = []
        flat, records = self.gpu.tables.arena, self.gpu.tables.records[slot]
        for layer in range(SPEC.num_layers):
            for index, modules in enumerate(PROJECTIONS.values()):
                record = records[layer, index].tolist()
                if record[1] == 0:
                    continue
                in_features = SPEC.module_shapes[modules[0]][0]
                start = record[0] * ARENA_UNIT
                found.append(flat[start : start + record[1] * in_features])
                for module, offset, rank in zip(modules, record[2:5], record[5:8], strict=False):
                    start = offset * ARENA_UNIT
                    found.append(flat[start : start + rank * SPEC.module_shapes[module][1]])
        return found


def adapter(seen: Seen, digest: str, ranks: dict[Place, int], seed: int) -> PackedAdapter:
    num_elements = seen.arena.projection_ends(ranks)[-1]
    dtype = torch.float32 if seen.arena.element_bytes == 4 else torch.bfloat16
    flat = torch.randn(num_elements, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return PackedAdapter(digest, flat, ranks)


def assert_intact(seen: Seen, slots: AdapterSlots, packed: dict[str, PackedAdapter]) -> None:
    for digest, weights in packed.items():
        occupant = slots.active(digest)
        assert occupant is not None
        assert torch.equal(torch.cat(seen.weights(occupant.slot)), weights.flat), digest


@pytest.mark.parametrize("make", [CpuSeen, GpuSeen])
@settings(max_examples=60, deadline=None)
@given(
    ranks=st.lists(
        st.dictionaries(st.sampled_from(PLACES), st.integers(1, 9), min_size=1, max_size=9),
        min_size=3,
        max_size=NUM_SLOTS,
    ),
    gone=st.sets(st.integers(0, NUM_SLOTS - 2)),
    budget=st.integers(1, 4000),
    leased=st.booleans(),
)
def test_adapters_that_are_moved_together_keep_every_weight(
    make: Callable[[], Seen], ranks: list[dict[Place, int]], gone: set[int], budget: int, leased: bool
) -> None:
    seen = make()
    slots = AdapterSlots(NUM_SLOTS, seen.arena)
    packed = {}
    for index, of_modules in enumerate(ranks):
        weights = adapter(seen, f"adapter-{index}", of_modules, index)
        occupant = slots.reserve(weights.digest, weights.flat.numel(), weights.ranks, may_take_awaited=True)
        if occupant is None:
            break
        occupant.leases = 1
        seen.arena.copy(occupant.extent.start, weights.flat)
        slots.publish(occupant)
        packed[weights.digest] = weights
    for index in gone:
        occupant = slots.active(f"adapter-{index}")
        if occupant is not None and len(packed) > 1:
            occupant.leases = 0
            slots.evict(occupant)
            del packed[occupant.digest]
    for occupant in slots.occupants:
        occupant.leases = int(leased)
    num_free = slots.num_free
    wanted = num_free - num_free % ARENA_UNIT
    if not slots._free_slots:
        return

    for _ in range(3000):
        reserved = slots.reserve("new", wanted, {}, may_take_awaited=True)
        if reserved is not None:
            break
        moved = slots.compact(budget)
        assert moved > 0
        assert_intact(seen, slots, packed)
        assert slots.num_free == num_free
        slots.forget_wanted_run()

    assert reserved is not None
    assert reserved.extent.length == wanted
    assert_intact(seen, slots, packed)


def test_an_adapter_that_is_being_copied_is_neither_moved_nor_evicted() -> None:
    seen = CpuSeen()
    slots = AdapterSlots(3, seen.arena)
    ranks = {(0, "q_proj"): 100}  # a third of the arena each
    first = slots.reserve("first", 4000, ranks, may_take_awaited=True)
    copying = slots.reserve("copying", 4000, ranks, may_take_awaited=True)
    assert first is not None
    assert copying is not None
    slots.publish(first)
    slots.evict(first)

    assert slots.reserve("large", 8000, {}, may_take_awaited=True) is None
    assert slots.compact(10_000) == 0
    slots.publish(copying)
    slots.evict(copying)

    assert slots.reserve("large", 8000, {}, may_take_awaited=True) is not None


def test_an_adapter_that_goes_while_it_moves_leaves_all_its_elements() -> None:
    seen = CpuSeen()
    slots = AdapterSlots(3, seen.arena)
    ranks: dict[Place, int] = {(0, "q_proj"): 60, (1, "o_proj"): 40}  # 4000 elements
    occupants = [slots.reserve(name, 4000, ranks, may_take_awaited=True) for name in "abc"]
    for occupant in occupants:
        assert occupant is not None
        slots.publish(occupant)
        occupant.leases = 1
    first, moving, last = occupants
    assert first is not None
    assert moving is not None
    assert last is not None
    first.leases = 0
    slots.evict(first)
    last.leases = 0
    slots.evict(last)
    assert slots.reserve("large", 8000, {}, may_take_awaited=True) is None
    slots.compact(1)
    assert slots.is_compacting

    moving.leases = 0
    slots.evict(moving)

    assert slots.num_free == seen.arena.num_free == CAPACITY
    assert seen.arena.largest_free == CAPACITY


def test_no_more_adapters_go_than_the_new_one_needs_and_none_in_vain() -> None:
    seen = CpuSeen()
    slots = AdapterSlots(6, seen.arena)
    for name in "abc":
        occupant = slots.reserve(name, 4000, {(0, "q_proj"): 100}, may_take_awaited=True)
        assert occupant is not None
        slots.publish(occupant)
    held = slots.active("c")
    assert held is not None
    held.leases = 1

    assert slots.reserve("too large", 9000, {}, may_take_awaited=True) is None
    assert slots.evicted == []
    assert slots.reserve("small", 1000, {}, may_take_awaited=True) is not None
    assert slots.evicted == ["a"]
