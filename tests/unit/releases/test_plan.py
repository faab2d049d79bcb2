"""What adapters will take, from their shapes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loraplex_adapters.base_spec import LORA_MODULES, BaseSpec
from loraplex_server.releases.plan import AdapterGroup, plan_adapters

SPEC = BaseSpec("LlamaForCausalLM", "f" * 64, 2, dict.fromkeys(LORA_MODULES, (64, 32)))
ONE_RANK = 2 * 7 * (64 + 32) * 2  # bytes of rank 1 on all modules in bfloat16


def plan(*groups: AdapterGroup, arena: int, slots: int = 100) -> tuple[int, bool, list[int]]:
    result = plan_adapters(
        groups, SPEC, arena_bytes=arena, element_bytes=2, adapter_slots=slots, base_bytes=1_000_000
    )
    return result.resident_together, result.all_resident, [group.resident_alone for group in result.groups]


def test_an_adapter_takes_its_rank_times_both_sides_of_its_modules() -> None:
    result = plan_adapters(
        [AdapterGroup(1, 4), AdapterGroup(1, 4, ("q_proj",))],
        SPEC,
        arena_bytes=10**9,
        element_bytes=2,
        adapter_slots=1,
        base_bytes=4 * ONE_RANK * 10,
    )

    assert [group.bytes_each for group in result.groups] == [4 * ONE_RANK, 4 * ONE_RANK // 7]
    assert result.groups[0].step_bytes_share == 0.1


def test_the_arena_or_the_slots_bound_how_many_are_resident() -> None:
    """vLLM #20160, #17003: 'users should compute it themselves'."""
    assert plan(AdapterGroup(50, 1), arena=10 * ONE_RANK) == (10, False, [10])
    assert plan(AdapterGroup(50, 1), arena=100 * ONE_RANK, slots=8) == (8, False, [8])
    assert plan(AdapterGroup(5, 1), arena=10 * ONE_RANK) == (5, True, [5])


def test_small_adapters_are_taken_first() -> None:
    groups = (AdapterGroup(2, 8), AdapterGroup(4, 1))

    assert plan(*groups, arena=12 * ONE_RANK) == (5, False, [1, 4])


def test_one_that_never_fits_is_told() -> None:
    result = plan_adapters(
        [AdapterGroup(1, 8)], SPEC, arena_bytes=ONE_RANK, element_bytes=2, adapter_slots=4, base_bytes=1
    )

    assert not result.groups[0].fits
    assert (result.groups[0].resident_alone, result.resident_together) == (0, 0)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 16)), min_size=1, max_size=4), st.integers(0, 300)
)
def test_what_is_resident_together_fits(groups: list[tuple[int, int]], ranks: int) -> None:
    together, all_resident, alone = plan(*(AdapterGroup(*group) for group in groups), arena=ranks * ONE_RANK)

    sizes = sorted(rank for count, rank in groups for _ in range(count))
    assert sum(sizes[:together]) <= ranks
    assert together == len(sizes) or together == 100 or sum(sizes[: together + 1]) > ranks
    assert all_resident == (together == len(sizes))
    assert all(number <= count for number, (count, _) in zip(alone, groups, strict=True))
