"""Extents never overlap and come back whole; views of an extent are the adapter's own tensors."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_adapters.compatibility import LoraModule, LoraWeights
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout, Extent
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


class ArenaMachine(RuleBasedStateMachine):
    """Allocates and frees in any order; every extent is filled with a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = AdapterArena(CAPACITY, torch.float32, torch.device("cpu"))
        self.held: dict[int, tuple[Extent, torch.Tensor]] = {}
        self.next_number = 0

    @rule(length=st.integers(1, CAPACITY // 3))
    def allocate(self, length: int) -> None:
        extent = self.arena.allocate(length)
        if extent is None:
            assert self.largest_gap() < length, "a gap that is large enough was not found"
            return
        assert extent.length == length
        assert 0 <= extent.start <= CAPACITY - length
        view = self.arena.write(extent, torch.full((length,), float(self.next_number)))
        self.held[self.next_number] = (extent, view)
        self.next_number += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        extent, _ = self.held.pop(number)
        self.arena.free(extent)

    @invariant()
    def no_extent_holds_what_belongs_to_another(self) -> None:
        for number, (_, view) in self.held.items():
            assert torch.equal(view, torch.full_like(view, float(number)))

    @invariant()
    def every_element_is_free_or_held(self) -> None:
        held = sum(extent.length for extent, _ in self.held.values())
        assert self.arena.num_free == CAPACITY - held

    def largest_gap(self) -> int:
        end, largest = 0, 0
        for extent, _ in sorted(self.held.values(), key=lambda entry: entry[0].start):
            largest, end = max(largest, extent.start - end), extent.start + extent.length
        return max(largest, CAPACITY - end)

    def teardown(self) -> None:
        for extent, _ in self.held.values():
            self.arena.free(extent)
        whole = self.arena.allocate(CAPACITY)
        assert whole == Extent(0, CAPACITY), "the free extents were not joined"


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


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
    arena = AdapterArena(packed.flat.numel() + 7, torch.float32, torch.device("cpu"))
    arena.allocate(7)  # so that the extent does not begin where the buffer does
    extent = arena.allocate(packed.flat.numel())
    assert extent is not None

    layers = layout.views(arena.write(extent, packed.flat), packed.ranks)

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


def test_module_slices_tile_the_projections() -> None:
    slices = module_slices(SPEC)
    assert slices.keys() == set(LORA_MODULES)
    for projection, modules in PROJECTIONS.items():
        column = 0
        for module in modules:
            assert (slices[module].projection, slices[module].column_start) == (projection, column)
            column = slices[module].column_stop
        assert column == sum(SHAPES[module][1] for module in modules)
