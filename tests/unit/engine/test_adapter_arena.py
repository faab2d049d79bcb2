"""Extents never overlap and come back whole; views of an extent are the adapter's own tensors."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.compatibility import LoraModule, LoraWeights
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout, Extent, FreeExtents, Placement
from loraplex_server.kernels.lora import LoraSegment, SegmentedLora
from loraplex_server.model.projections import PROJECTIONS, module_slices
from tests.support.tiny_peft import FFN, HIDDEN, KV, NUM_LAYERS

CAPACITY = 60
SHAPES = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (HIDDEN, KV),
    "v_proj": (HIDDEN, KV),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (HIDDEN, FFN),
    "up_proj": (HIDDEN, FFN),
    "down_proj": (FFN, HIDDEN),
}
SPEC = BaseSpec("LlamaForCausalLM", "f" * 64, NUM_LAYERS, SHAPES)
RANKS = st.dictionaries(
    st.tuples(st.integers(0, NUM_LAYERS - 1), st.sampled_from(LORA_MODULES)), st.integers(1, 9), min_size=1
)


class ExtentsMachine(RuleBasedStateMachine):
    """Allocates and frees in any order; the holder of an extent writes its own number all over it."""

    def __init__(self) -> None:
        super().__init__()
        self.extents = FreeExtents(CAPACITY)
        self.buffer = [-1] * CAPACITY
        self.held: dict[int, Extent] = {}
        self.next_number = 0

    @rule(length=st.integers(1, CAPACITY // 3))
    def allocate(self, length: int) -> None:
        extent = self.extents.allocate(length)
        if extent is None:
            assert self.largest_gap() < length, "a gap that is large enough was not found"
            return
        assert extent.length == length
        self.buffer[extent.start : extent.start + length] = [self.next_number] * length
        self.held[self.next_number] = extent
        self.next_number += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.extents.free(self.held.pop(data.draw(st.sampled_from(sorted(self.held)))))

    @invariant()
    def no_extent_holds_what_belongs_to_another(self) -> None:
        for number, extent in self.held.items():
            assert self.buffer[extent.start : extent.start + extent.length] == [number] * extent.length
        assert len(self.buffer) == CAPACITY

    @invariant()
    def every_element_is_free_or_held(self) -> None:
        assert self.extents.num_free == CAPACITY - sum(extent.length for extent in self.held.values())

    def largest_gap(self) -> int:
        end, largest = 0, 0
        for extent in sorted(self.held.values(), key=lambda extent: extent.start):
            largest, end = max(largest, extent.start - end), extent.start + extent.length
        return max(largest, CAPACITY - end)

    def teardown(self) -> None:
        for extent in self.held.values():
            self.extents.free(extent)
        assert self.extents.allocate(CAPACITY) == Extent(0, CAPACITY), "the free extents were not joined"


TestExtentsMachine = ExtentsMachine.TestCase
TestExtentsMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def random_weights(ranks: dict[tuple[int, str], int]) -> LoraWeights:
    generator = torch.Generator().manual_seed(len(ranks))

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    modules = {
        (layer, module): LoraModule(
            a=matrix(rank, SHAPES[module][0]),
            b=matrix(SHAPES[module][1], rank),
            rank=rank,
            scaling=0.5 + rank,
        )
        for (layer, module), rank in ranks.items()
    }
    return LoraWeights("d" * 64, max(ranks.values()), modules)


@settings(max_examples=100, deadline=None)
@given(ranks=RANKS)
def test_the_views_of_an_extent_are_the_matrices_of_each_module(ranks: dict[tuple[int, str], int]) -> None:
    weights = random_weights(ranks)
    layout = AdapterLayout(SPEC)
    packed = layout.pack(weights, torch.float32)
    arena = AdapterArena(packed.flat.numel() + 7, torch.float32, layout)
    arena.allocate(7)  # so that the extent does not begin where the buffer does
    extent = arena.allocate(packed.flat.numel())
    assert extent is not None

    arena.copy(extent.start, packed.flat)
    arena.publish(3, Placement.at(extent.start, packed.ranks))
    layers = arena.layers_of_slot(3)

    found = set()
    for layer, projections in enumerate(layers):
        for name, projection in projections.items():
            touched = [module for module in PROJECTIONS[name] if (layer, module) in ranks]
            assert len(touched) == len(projection.parts) > 0
            for module, part in zip(touched, projection.parts, strict=True):
                lora = weights.modules[layer, module]
                columns = module_slices(SPEC)[module]
                assert torch.equal(projection.a[:, part.rank_start : part.rank_stop].t(), lora.a)
                assert torch.equal(part.b.t(), lora.b * lora.scaling)
                assert (part.column_start, part.column_stop) == (columns.column_start, columns.column_stop)
                found.add((layer, module))
    assert found == ranks.keys()


@settings(deadline=None)
@given(ranks=RANKS)
def test_an_extent_is_as_long_as_its_matrices_together(ranks: dict[tuple[int, str], int]) -> None:
    weights = random_weights(ranks)
    layout = AdapterLayout(SPEC)

    packed = layout.pack(weights, torch.bfloat16)

    expected = sum(lora.a.numel() + lora.b.numel() for lora in weights.modules.values())
    assert packed.flat.numel() == layout.num_elements(ranks) == expected
    assert packed.flat.dtype == torch.bfloat16
    assert packed.ranks == ranks
    assert packed.digest == weights.digest


def test_a_row_costs_the_products_of_its_own_adapter_s_rank_whatever_others_have() -> None:
    """vLLM #13204, #14435: LoRA's price grew with the largest rank that was configured."""
    rows_of_rank = {1: 5, 4: 2, 64: 3}
    layout = AdapterLayout(SPEC)
    arena = AdapterArena(10 * layout.num_elements(full_rank(64)), torch.float32, layout)
    segments, start = [], 0
    for slot, (rank, num_rows) in enumerate(rows_of_rank.items()):
        extent = arena.allocate(layout.num_elements(full_rank(rank)))
        assert extent is not None
        assert extent.length == rank * layout.num_elements(full_rank(1))
        arena.publish(slot, Placement.at(extent.start, full_rank(rank)))
        segments.append(LoraSegment(start, start + num_rows, arena.layers_of_slot(slot)))
        start += num_rows
    lora = SegmentedLora(segments)

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place_flop}) as counter:
        for layer in range(NUM_LAYERS):
            lora.add(layer, "down", torch.zeros(start, FFN), torch.zeros(start, HIDDEN))

    per_rank = 2 * (FFN + HIDDEN) * NUM_LAYERS
    assert counter.get_total_flops() == per_rank * sum(rank * rows for rank, rows in rows_of_rank.items())


def in_place_flop(out: list[int], a: list[int], b: list[int], **_: Any) -> int:
    """Of out += a @ b, which the counter does not know."""
    return int(mm_flop(a, b))


def full_rank(rank: int) -> dict[tuple[int, str], int]:
    """Of every module."""
    return {(layer, module): rank for layer in range(NUM_LAYERS) for module in LORA_MODULES}


def test_module_slices_tile_the_projections() -> None:
    slices = module_slices(SPEC)
    assert slices.keys() == set(LORA_MODULES)
    for projection, modules in PROJECTIONS.items():
        column = 0
        for module in modules:
            assert (slices[module].projection, slices[module].column_start) == (projection, column)
            column = slices[module].column_stop
        assert column == sum(SHAPES[module][1] for module in modules)
