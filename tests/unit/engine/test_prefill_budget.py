"""While others decode, prompts are spread over steps: smoothly under light load, in large chunks under heavy."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex_server.engine.messages import SamplingParams
from loraplex_server.engine.prefill_budget import (
    WHOLE_PROMPTS,
    PaddedRows,
    PrefillBudget,
    PrefillSpread,
    not_padded,
    prefill_shares,
)
from loraplex_server.engine.scheduled_batch import ScheduledBatch
from loraplex_server.engine.scheduler import SchedulerLimits
from loraplex_server.engine.sequence import Sequence
from tests.unit.engine.simulation import FakeResidency, Simulation, add_command

ENDLESS = SamplingParams(max_tokens=10_000, ignore_eos=True)
ONE = SamplingParams(max_tokens=1)
DECODING = 0  # the sequence that decodes when prompts arrive


def decoding_simulation(
    spread: PrefillSpread,
    *,
    max_batched_tokens: int = 1000,
    max_running: int = 50,
    num_blocks: int = 2000,
    residency: FakeResidency | None = None,
    overlapped: bool = False,
    sampling: SamplingParams = ENDLESS,
    padded_rows: PaddedRows = not_padded,
) -> Simulation:
    """One in which a sequence decodes already."""
    sim = Simulation(
        num_blocks=num_blocks,
        limits=SchedulerLimits(max_running, max_batched_tokens, 10_000, spread, padded_rows),
        residency=residency,
        overlapped=overlapped,
    )
    sim.add(add_command(DECODING, [1], sampling=sampling))
    sim.step()
    return sim


def prompt_rows(batch: ScheduledBatch | None) -> dict[int, int]:
    """Sequence id -> rows of its prompt in the step."""
    assert batch is not None
    prompts = [
        row for row in (*batch.prefills, *batch.decodes) if row.start < len(row.sequence.prompt_token_ids)
    ]
    return {row.sequence.sequence_id: row.num_tokens for row in prompts}


def rows_of_steps(sim: Simulation, num_steps: int) -> list[int]:
    return [sum(prompt_rows(sim.step()).values()) for _ in range(num_steps)]


def test_a_prompt_takes_its_share_of_every_step_while_another_decodes() -> None:
    sim = decoding_simulation(PrefillSpread(steps=4, min_rows=2))
    sim.add(add_command(1, [10] * 30, sampling=ENDLESS))

    assert rows_of_steps(sim, 5) == [8, 8, 8, 6, 0]


def test_a_short_prompt_takes_the_fewest_rows_that_pay() -> None:
    sim = decoding_simulation(PrefillSpread(steps=16, min_rows=8))
    sim.add(add_command(1, [10] * 20, sampling=ENDLESS))

    assert rows_of_steps(sim, 4) == [8, 8, 4, 0]


def test_prompts_get_the_rows_that_a_step_would_be_padded_with() -> None:
    sim = decoding_simulation(
        PrefillSpread(steps=16, min_rows=8), padded_rows=lambda rows: -(-rows // 16) * 16
    )
    sim.add(add_command(1, [10] * 70, sampling=ENDLESS))

    assert rows_of_steps(sim, 6) == [15, 15, 15, 15, 10, 0]


def test_padding_gives_no_step_more_than_it_holds() -> None:
    sim = decoding_simulation(
        PrefillSpread(steps=16, min_rows=8),
        max_batched_tokens=20,
        padded_rows=lambda rows: -(-rows // 64) * 64,
    )
    sim.add(add_command(1, [10] * 30, sampling=ENDLESS))

    assert rows_of_steps(sim, 3) == [19, 11, 0]


def test_without_anybody_decoding_a_prompt_goes_in_whole() -> None:
    sim = Simulation(limits=SchedulerLimits(8, 100, 1000, PrefillSpread(steps=16)))
    sim.add(add_command(0, [10] * 60, sampling=ENDLESS))

    assert rows_of_steps(sim, 1) == [60]


def test_a_sequence_whose_last_token_is_pending_does_not_hold_a_prompt_up() -> None:
    two = SamplingParams(max_tokens=2, ignore_eos=True)
    sim = decoding_simulation(PrefillSpread(steps=16), overlapped=True, sampling=two)
    sim.step()
    assert not sim.finished
    sim.add(add_command(1, [10] * 60, sampling=ENDLESS))

    assert rows_of_steps(sim, 1) == [60]


def test_a_backlog_is_taken_in_large_chunks() -> None:
    spread = PrefillSpread(steps=10, min_rows=2)
    sim = decoding_simulation(spread, max_batched_tokens=201)
    for sequence_id in range(10, 40):
        sim.add(add_command(sequence_id, [sequence_id] * 100, sampling=ENDLESS))

    assert rows_of_steps(sim, 1) == [200]


def test_a_backlog_that_waits_for_places_is_taken_in_large_chunks_too() -> None:
    sim = decoding_simulation(PrefillSpread(steps=10, min_rows=2), max_running=2)
    for sequence_id in range(10, 40):
        sim.add(add_command(sequence_id, [sequence_id] * 100, sampling=ONE))

    assert rows_of_steps(sim, 3) == [100, 100, 100]


def test_one_whose_adapter_is_on_its_way_makes_nobody_s_step_larger() -> None:
    residency = FakeResidency(num_slots=2, arrives_at_once=False)
    sim = decoding_simulation(PrefillSpread(steps=10, min_rows=2), residency=residency)
    sim.add(add_command(1, [10] * 500, digest="a", sampling=ENDLESS))
    sim.add(add_command(2, [20] * 50, sampling=ENDLESS))

    assert prompt_rows(sim.step()) == {2: 5}
    residency.arrive()
    assert sum(prompt_rows(sim.step()).values()) == 2 * 55


def test_one_in_the_background_takes_its_share_and_makes_nobody_wait_until_it_ends() -> None:
    sim = decoding_simulation(PrefillSpread(steps=10, min_rows=2))
    sim.add(msgspec.structs.replace(add_command(1, [10] * 100, sampling=ONE), is_background=True))
    sim.step()
    sim.add(add_command(2, [20] * 50, sampling=ENDLESS))

    rows = [prompt_rows(sim.step()) for _ in range(11)]

    assert rows[:9] == [{1: 10, 2: 5}] * 9
    assert rows[9:] == [{1: 8, 2: 5}, {}]


def test_one_in_the_background_takes_its_share_of_a_step_that_a_backlog_fills_too() -> None:
    sim = decoding_simulation(PrefillSpread(steps=10, min_rows=2), max_batched_tokens=201)
    sim.add(msgspec.structs.replace(add_command(1, [10] * 150, sampling=ONE), is_background=True))
    sim.step()
    for sequence_id in range(10, 40):
        sim.add(add_command(sequence_id, [sequence_id] * 100, sampling=ENDLESS))

    rows = prompt_rows(sim.step())

    assert rows[1] == 15
    assert sum(rows.values()) == 200


def test_those_in_the_background_that_wait_make_no_step_larger() -> None:
    sim = decoding_simulation(PrefillSpread(steps=10, min_rows=4))
    for sequence_id in range(1, 10):
        command = add_command(sequence_id, [sequence_id] * 20, sampling=ONE)
        sim.add(msgspec.structs.replace(command, is_background=True))

    rows = rows_of_steps(sim, 200)

    assert sum(rows) == 9 * 20
    assert max(rows) == 4


def test_what_lies_in_the_prefix_cache_is_not_counted() -> None:
    spread = PrefillSpread(steps=10, min_rows=2)
    sim = decoding_simulation(spread)
    prompt = [2] * 400
    sim.add(add_command(1, prompt, sampling=ONE))
    while 1 not in sim.finished:
        sim.step()
    sim.add(add_command(2, [*prompt, *[1] * 30], sampling=ENDLESS))

    assert rows_of_steps(sim, 11) == [3] * 10 + [0]
    assert sim.prefix_hit_tokens == 400


def test_a_preempted_sequence_s_completion_counts_with_its_prompt() -> None:
    """Its tokens are all computed anew."""
    waiting = Sequence.of(add_command(1, [10] * 30), 1)
    waiting.output_token_ids = [2] * 10
    begun = Sequence.of(add_command(2, [20] * 30), 2)
    begun.output_token_ids = [2] * 10
    begun.num_tokens_to_prefill, begun.num_computed_tokens = 40, 24
    decoding = Sequence.of(add_command(3, [30] * 30), 3)
    decoding.num_tokens_to_prefill, decoding.num_computed_tokens = 30, 29

    shares = prefill_shares(PrefillSpread(steps=5), [begun, decoding], [waiting], lambda digest: False)

    assert list(shares) == [8, 8]


def test_a_preempted_sequence_is_spread_anew_and_ends() -> None:
    sim = Simulation(
        num_blocks=24,
        limits=SchedulerLimits(4, 100, 1000, PrefillSpread(steps=6, min_rows=1)),
        prefix_cache=False,
    )
    for sequence_id, length in ((0, 12), (1, 24), (2, 24)):
        sampling = SamplingParams(max_tokens=30, ignore_eos=True)
        sim.add(add_command(sequence_id, [1 + sequence_id] * length, sampling=sampling))

    sim.run()

    assert sim.num_preempted > 0
    assert [len(sim.tokens[sequence_id]) for sequence_id in range(3)] == [30] * 3


def test_a_prompt_begins_only_when_there_are_blocks_for_all_of_it() -> None:
    sim = decoding_simulation(PrefillSpread(steps=4, min_rows=1), num_blocks=12)
    sim.add(add_command(1, [10] * 20, sampling=SamplingParams(max_tokens=4, ignore_eos=True)))
    sim.step()
    sim.add(add_command(2, [20] * 28, sampling=ONE))
    while 1 not in sim.finished:
        assert 2 not in prompt_rows(sim.step())

    while 2 not in sim.finished:
        sim.step()

    assert sim.num_preempted == 0


def test_a_budget_never_exceeds_what_the_step_holds() -> None:
    spread = PrefillSpread(steps=2, min_rows=8)

    assert PrefillBudget.shared(5, spread, []).left == 5
    assert PrefillBudget.shared(5, spread, [100]).left == 5
    assert PrefillBudget.shared(20, spread, [9]).left == 9
    assert PrefillBudget.shared(20, spread, [3, 4]).left == 14
    assert PrefillBudget.shared(20, spread, [3, 9]).left == 20
    assert PrefillBudget.shared(20, spread, [9], background=4).left == 13
    assert PrefillBudget.shared(20, spread, [3]).left == 8


def test_what_is_found_in_the_cache_makes_a_share_smaller_but_not_a_step_that_takes_prompts_whole() -> None:
    spread = PrefillSpread(steps=2, min_rows=1)
    sequence = Sequence.of(add_command(0, [1] * 20), 0)
    sequence.num_tokens_to_prefill = 4
    budgets = [
        PrefillBudget.shared(100, spread, [10]),
        PrefillBudget.shared(10, spread, [10]),
        PrefillBudget.whole(10),
    ]

    for budget in budgets:
        budget.correct(sequence)

    assert [budget.left for budget in budgets] == [2, 10, 10]


@pytest.mark.parametrize("name", ["steps", "min_rows"])
def test_a_spread_over_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        PrefillSpread(**{name: 0})


ARRIVALS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 80)), min_size=1, max_size=12)
SPREADS = st.builds(PrefillSpread, st.integers(2, 20), st.integers(1, 10))


@settings(max_examples=100)
@given(arrivals=ARRIVALS, spread=SPREADS, limit=st.integers(50, 120), overlapped=st.booleans())
def test_every_prompt_is_done_within_its_steps_and_those_of_the_prompts_before_it(
    arrivals: list[tuple[int, int]], spread: PrefillSpread, limit: int, overlapped: bool
) -> None:
    sim = decoding_simulation(spread, max_batched_tokens=limit, overlapped=overlapped)
    arrivals.sort()
    left = {number: length for number, (_, length) in enumerate(arrivals, start=1)}
    due: dict[int, int] = {}
    step = 0
    while any(left.values()):
        for number, (arrival, length) in enumerate(arrivals, start=1):
            if arrival == step:
                sim.add(add_command(number, [100 + number] * length, sampling=ENDLESS))
                num_before = sum(left[other] > 0 for other in left if other <= number)
                due[number] = step + 2 * spread.steps + num_before + sum(left.values()) // (limit - 13) + 1
        batch = sim.step()
        rows = prompt_rows(batch)
        waiting = [number for number in due if left[number]]
        shares = sum(spread.share(arrivals[number - 1][1]) for number in waiting) * len(waiting)
        assert batch is not None
        # A prompt's last token alone is a decode, which needs no budget.
        assert sum(row.num_tokens for row in batch.prefills) <= max(spread.min_rows, shares)
        for number in waiting:
            taken = rows.get(number, 0)
            assert taken or not any(rows.get(later) for later in waiting if later > number), "out of order"
            left[number] -= taken
            assert not left[number] or not any(rows.get(later) for later in waiting if later > number)
            assert left[number] == 0 or step < due[number], "too late"
        step += 1


@settings(max_examples=100)
@given(arrivals=ARRIVALS, limit=st.integers(50, 120), min_rows=st.integers(1, 10))
def test_spread_over_one_step_prompts_are_cut_only_where_the_step_is_full(
    arrivals: list[tuple[int, int]], limit: int, min_rows: int
) -> None:
    sim = decoding_simulation(PrefillSpread(1, min_rows), max_batched_tokens=limit)
    for number, (_, length) in enumerate(arrivals, start=1):
        sim.add(add_command(number, [100 + number] * length, sampling=ENDLESS))
    left = sum(length for _, length in arrivals)

    while left:
        batch = sim.step()
        assert batch is not None
        left -= sum(prompt_rows(batch).values())
        assert left == 0 or batch.num_tokens == limit


@settings(max_examples=100)
@given(arrivals=ARRIVALS, limit=st.integers(6, 120), overlapped=st.booleans(), spread=SPREADS)
def test_the_tokens_are_the_same_with_and_without(
    arrivals: list[tuple[int, int]], limit: int, overlapped: bool, spread: PrefillSpread
) -> None:
    def tokens_of(spread: PrefillSpread) -> dict[int, list[int]]:
        sim = decoding_simulation(
            spread,
            max_batched_tokens=limit,
            max_running=6,
            num_blocks=40,
            overlapped=overlapped,
            sampling=SamplingParams(max_tokens=30, ignore_eos=True),
        )
        for step in range(13):
            for number, (arrival, length) in enumerate(arrivals, start=1):
                if arrival == step:
                    sim.add(
                        add_command(number, [1 + number % 3] * length, sampling=SamplingParams(max_tokens=6))
                    )
            sim.step()
        sim.run()
        return sim.tokens

    assert tokens_of(spread) == tokens_of(WHOLE_PROMPTS)
