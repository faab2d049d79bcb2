"""Order, budget, fairness and timings of the scheduler."""

from __future__ import annotations

import math

import msgspec
import pytest

from loraplex_server.engine import background_pace
from loraplex_server.engine.background_pace import BACKGROUND_EVERY
from loraplex_server.engine.messages import AddSequence, FinishReason, SamplingParams, SequenceTimings
from loraplex_server.engine.scheduler import SchedulerLimits
from loraplex_server.engine.slot_turns import MAX_BYPASSES
from tests.unit.engine.simulation import FakeResidency, Simulation, add_command, naive_completion

ENDLESS = SamplingParams(max_tokens=10_000, ignore_eos=True)
ONE = SamplingParams(max_tokens=1)


def limits(
    max_running: int = 8, max_batched_tokens: int = 16, max_context_tokens: int = 1000
) -> SchedulerLimits:
    return SchedulerLimits(max_running, max_batched_tokens, max_context_tokens)


def running_of(sim: Simulation) -> list[int]:
    """Ids of the sequences in the next step."""
    batch = sim.step()
    assert batch is not None
    return sorted(row.sequence.sequence_id for row in (*batch.decodes, *batch.prefills))


def test_a_long_prompt_is_split_over_steps_and_sampled_once() -> None:
    sim = Simulation(limits=limits(max_batched_tokens=10))
    sim.add(add_command(0, [1] * 25, sampling=ONE))

    chunks = []
    while (batch := sim.step()) is not None:
        chunks += [(row.start, row.num_tokens, row.is_last_chunk) for row in batch.prefills]

    assert chunks == [(0, 10, False), (10, 10, False), (20, 5, True)]
    assert len(sim.tokens[0]) == 1


def test_decodes_go_before_prefills_under_the_one_budget() -> None:
    sim = Simulation(limits=limits(max_batched_tokens=8))
    sim.add(add_command(0, [1, 2], sampling=ENDLESS))
    sim.step()
    sim.add(add_command(1, [1] * 30, sampling=ENDLESS))

    batch = sim.step()

    assert batch is not None
    assert [row.sequence.sequence_id for row in batch.decodes] == [0]
    assert [(row.sequence.sequence_id, row.num_tokens) for row in batch.prefills] == [(1, 7)]


def test_sequences_are_admitted_in_order_of_arrival() -> None:
    sim = Simulation(limits=limits(max_running=2))
    for sequence_id in range(4):
        sim.add(add_command(sequence_id, [1, 2, 3], sampling=SamplingParams(max_tokens=2, ignore_eos=True)))

    assert [running_of(sim) for _ in range(4)] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_a_later_short_prompt_does_not_take_the_blocks_that_the_oldest_waits_for() -> None:
    sim = Simulation(num_blocks=8, block_size=4, limits=limits(max_batched_tokens=32))
    sim.add(add_command(0, [1] * 15, sampling=SamplingParams(max_tokens=2, ignore_eos=True)))
    sim.step()
    sim.add(add_command(1, [2] * 20, sampling=ONE))
    sim.add(add_command(2, [3], sampling=ONE))

    assert running_of(sim) == [0]
    assert running_of(sim) == [1, 2]


def test_an_adapter_that_loads_delays_only_its_own_sequences() -> None:
    """vLLM #31941: a request's load blocked the step of everybody."""
    sim = Simulation(residency=FakeResidency(num_slots=2, arrives_at_once=False))
    sim.add(add_command(0, [1], digest="slow", sampling=ENDLESS))
    sim.add(add_command(1, [1], sampling=ENDLESS))

    assert running_of(sim) == [1]
    sim.residency.arrive()
    assert running_of(sim) == [0, 1]


def test_rows_of_one_adapter_are_adjacent_and_the_base_comes_first() -> None:
    sim = Simulation(residency=FakeResidency(num_slots=2))
    for sequence_id, digest in enumerate(["a", None, "b", "a", None, "b"]):
        sim.add(add_command(sequence_id, [1, 2], digest=digest, sampling=ENDLESS))

    batch = sim.step()

    assert batch is not None
    assert [row.sequence.adapter_slot for row in batch.prefills] == [-1, -1, 0, 0, 1, 1]
    assert batch.adapter_slots == {0, 1}


def test_a_sequence_that_waits_for_a_slot_is_passed_a_bounded_number_of_times() -> None:
    """SGLang #15129, #17913: a hot adapter kept its slot for ever."""
    sim = Simulation(limits=limits(max_running=2), residency=FakeResidency(num_slots=1))
    brief = SamplingParams(max_tokens=2, ignore_eos=True)  # two steps, so that two of them overlap for ever
    sim.add(add_command(0, [1], digest="popular", sampling=brief))
    sim.step()
    sim.add(add_command(1, [1], digest="rare", sampling=ONE))
    next_id = 2
    while 1 not in sim.finished and next_id < 10 * MAX_BYPASSES:
        sim.add(add_command(next_id, [1], digest="popular", sampling=brief))
        sim.step()
        next_id += 1

    assert 1 in sim.finished
    passed = sum(sequence_id in sim.finished for sequence_id in range(2, next_id))
    assert passed == MAX_BYPASSES


def test_hot_adapters_in_every_slot_leave_one_to_a_rare_one_after_a_bounded_number_of_sequences() -> None:
    sim = Simulation(limits=limits(max_running=8), residency=FakeResidency(num_slots=3))
    brief = SamplingParams(max_tokens=3, ignore_eos=True)
    next_id = 0
    rare_id = 10
    while rare_id not in sim.finished and next_id < 20 * MAX_BYPASSES:
        for digest in ("hot-0", "hot-1", "hot-2"):
            name = "rare" if next_id == rare_id else digest
            sim.add(add_command(next_id, [1], digest=name, sampling=ONE if name == "rare" else brief))
            next_id += 1
        sim.step()

    assert rare_id in sim.finished
    admitted = sum(i in sim.finished or bool(sim.tokens[i]) for i in range(rare_id + 1, next_id))
    assert admitted <= MAX_BYPASSES + 8  # the last of them beside the rare one itself


def test_sequences_that_need_no_slot_pass_one_that_waits_for_a_slot() -> None:
    residency = FakeResidency(num_slots=2)
    residency.pinned = {"pinned"}
    sim = Simulation(num_blocks=256, limits=limits(max_running=4), residency=residency)
    sim.add(add_command(0, [1], digest="popular", sampling=ENDLESS))
    sim.add(add_command(1, [1], digest="pinned", sampling=ENDLESS))
    sim.step()
    sim.add(add_command(2, [1], digest="rare", sampling=ONE))
    last = 2 + 2 * MAX_BYPASSES
    for sequence_id in range(3, last):
        sim.add(add_command(sequence_id, [1], digest=["pinned", None][sequence_id % 2], sampling=ONE))
        sim.step()
    sim.add(add_command(last, [1], digest="popular", sampling=ONE))
    sim.step()

    assert set(range(3, last)) <= sim.finished.keys()
    assert last in sim.finished, "bases and pinned adapters were counted"
    sim.abort([0])
    sim.step()
    sim.step()
    assert 2 in sim.finished


def test_a_pinned_adapter_that_waits_for_a_slot_is_passed_a_bounded_number_of_times() -> None:
    residency = FakeResidency(num_slots=1)
    sim = Simulation(limits=limits(max_running=2), residency=residency)
    residency.is_pin_waiting = True
    for sequence_id in range(2 * MAX_BYPASSES):
        sim.add(add_command(sequence_id, [1], digest="popular", sampling=ONE))
        sim.step()
    assert len(sim.finished) == MAX_BYPASSES

    residency.is_pin_waiting = False
    sim.run()

    assert len(sim.finished) == 2 * MAX_BYPASSES


def background(sequence_id: int) -> AddSequence:
    return msgspec.structs.replace(add_command(sequence_id, [1, 2], sampling=ONE), is_background=True)


def test_a_background_sequence_begins_at_once_where_nobody_else_runs() -> None:
    sim = Simulation(limits=limits())
    for sequence_id in range(3):
        sim.add(background(sequence_id))
        assert running_of(sim) == [sequence_id]


def test_beside_others_background_sequences_begin_together_once_in_many_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_pace, "BACKGROUND_AFTER_S", math.inf)
    sim = Simulation(num_blocks=200, limits=limits())
    sim.add(add_command(0, [1, 2], sampling=ENDLESS))
    sim.step()
    begun = []
    for step in range(3 * BACKGROUND_EVERY):
        if step % 100 == 0:
            sim.add(background(step + 1))
            sim.add(background(step + 2))
        if len(running_of(sim)) > 1:
            begun.append(step)

    assert begun == [0, BACKGROUND_EVERY, 2 * BACKGROUND_EVERY]


def test_a_background_sequence_holds_up_nobody_behind_it() -> None:
    sim = Simulation(num_blocks=200, limits=limits())
    sim.add(add_command(0, [1, 2], sampling=ENDLESS))
    sim.step()
    for command in (background(1), background(2), add_command(3, [1, 2], sampling=ENDLESS)):
        sim.add(command)

    assert running_of(sim) == [0, 1, 2, 3]
    sim.add(background(4))
    sim.add(add_command(5, [1, 2], sampling=ENDLESS))
    assert running_of(sim) == [0, 3, 5]


def test_a_preempted_sequence_returns_to_its_place_and_repeats_no_token() -> None:
    sim = Simulation(num_blocks=6, block_size=2, prefix_cache=False)
    commands = [
        add_command(i, [1, 2, i], sampling=SamplingParams(max_tokens=8, ignore_eos=True)) for i in range(3)
    ]
    for command in commands:
        sim.add(command)

    sim.run()

    assert sim.num_preempted > 0
    assert list(sim.finished) == [0, 1, 2]
    for command in commands:
        assert sim.tokens[command.sequence_id] == naive_completion(command, sim.capacity, 1000)[0]


def test_the_latest_arrival_is_the_victim() -> None:
    sim = Simulation(num_blocks=4, block_size=2, prefix_cache=False)
    sim.add(add_command(0, [1, 2, 1, 2], sampling=ENDLESS))
    sim.add(add_command(1, [1, 2, 1, 2], sampling=ENDLESS))
    sim.step()

    batch = sim.step()

    assert batch is not None
    assert batch.num_preempted == 1
    assert [row.sequence.sequence_id for row in batch.decodes] == [0]


def test_preemption_gives_the_adapter_lease_back() -> None:
    sim = Simulation(num_blocks=4, block_size=2, residency=FakeResidency(num_slots=2))
    sim.add(add_command(0, [1, 2, 1, 2], sampling=ENDLESS))
    sim.add(add_command(1, [1, 2, 1, 2], digest="a", sampling=ENDLESS))
    sim.step()
    assert sim.residency.num_leases == 1

    sim.step()

    assert sim.residency.num_leases == 0


def test_abort_frees_blocks_and_lease_at_once_and_ends_the_sequence_once() -> None:
    sim = Simulation()
    sim.add(add_command(0, [1, 2, 3], digest="a", sampling=ENDLESS))
    sim.add(add_command(1, [1, 2, 3], digest="b", sampling=ENDLESS))
    sim.step()
    sim.add(add_command(2, [1], sampling=ENDLESS))

    sim.abort([0, 0, 1, 2, 99])

    assert {i: o.finish_reason for i, o in sim.finished.items()} == dict.fromkeys(
        range(3), FinishReason.ABORT
    )
    assert sim.blocks.num_used == sim.residency.num_leases == 0
    assert not sim.scheduler.has_work()


def test_an_adapter_that_nobody_waits_for_any_more_is_not_awaited() -> None:
    sim = Simulation(residency=FakeResidency(num_slots=2, arrives_at_once=False))
    for sequence_id in range(2):
        sim.add(add_command(sequence_id, [1], digest="slow", sampling=ENDLESS))

    sim.abort([0])
    assert sim.residency.loading == {"slow"}
    sim.abort([1])
    assert sim.residency.loading == set()


def test_a_damaged_adapter_fails_only_its_own_sequences() -> None:
    sim = Simulation(residency=FakeResidency(num_slots=1, broken=frozenset({"damaged"})))
    sim.add(add_command(0, [1], digest="damaged", sampling=ONE))
    sim.add(add_command(1, [1], digest="sound", sampling=ONE))

    sim.run()

    assert sim.finished[0].finish_reason is FinishReason.ERROR
    assert sim.finished[0].error_reason == "ADAPTER_UNAVAILABLE"
    assert sim.finished[1].finish_reason is FinishReason.LENGTH


def test_a_prompt_that_fills_the_whole_cache_gets_its_one_token() -> None:
    sim = Simulation(num_blocks=2, block_size=4)
    sim.add(add_command(0, [1] * 8, sampling=ONE))
    sim.add(add_command(1, [1] * 9, sampling=ONE))

    sim.run()

    assert sim.finished[0].finish_reason is FinishReason.LENGTH
    assert sim.finished[1].error_reason == "CONTEXT_OVERFLOW"


def test_the_end_of_the_context_ends_a_sequence_with_length() -> None:
    sim = Simulation(limits=limits(max_context_tokens=10))
    sim.add(add_command(0, [1] * 7, sampling=ENDLESS))

    sim.run()

    assert len(sim.tokens[0]) == 3
    assert sim.finished[0].finish_reason is FinishReason.LENGTH


def test_timings_count_adapter_wait_until_it_arrives_and_queue_until_the_first_step() -> None:
    sim = Simulation(
        limits=limits(max_batched_tokens=8),
        residency=FakeResidency(num_slots=1, arrives_at_once=False),
    )
    sim.add(add_command(0, [1] * 12, digest="a", sampling=SamplingParams(max_tokens=3, ignore_eos=True)))
    sim.step()
    sim.step()
    sim.residency.arrive()

    sim.run()

    expected = SequenceTimings(queue_s=3.0, adapter_load_s=2.0, prefill_s=1.0, decode_s=2.0)
    assert sim.finished[0].timings == expected
