"""Greedy tokens of a request are PEFT's, alone and in any batch, however the engine goes about it (fp32)."""

from __future__ import annotations

import random

import pytest

from loraplex_server.engine.messages import FinishReason
from tests.integration.engine.conftest import COMPLETION_TOKENS, Case
from tests.integration.engine.run import Completion, EngineRun
from tests.integration.engine.world import ADAPTERS, World, start_engine


def add(run: EngineRun, world: World, case: Case) -> int:
    return run.add(case.prompt, world.digest(case.adapter), max_tokens=COMPLETION_TOKENS)


def assert_expected(completions: list[Completion], cases: list[Case]) -> None:
    for completion, case in zip(completions, cases, strict=True):
        assert completion.tokens == case.expected, (case.adapter, len(case.prompt))
        assert completion.finish_reason is FinishReason.LENGTH


def test_a_request_alone_gets_the_tokens_of_peft(world: World, cases: list[Case]) -> None:
    with EngineRun(start_engine(world, prefix_cache=False)) as run:
        for case in cases:
            add(run, world, case)
            run.finish()

        assert_expected(run.completions, cases)
        assert run.totals.max_batch_sequences == 1


def test_a_request_in_a_mixed_batch_gets_the_tokens_of_peft(world: World, cases: list[Case]) -> None:
    with EngineRun(start_engine(world, max_running=40, max_batched_tokens=2048)) as run:
        run.load(*world.digests.values())
        for case in cases:
            add(run, world, case)

        assert_expected(run.finish(), cases)
        assert run.totals.max_batch_adapters == len(ADAPTERS)
        assert run.totals.max_batch_sequences == len(cases)
        run.assert_nothing_is_left(*world.digests.values())


@pytest.mark.parametrize("max_batched_tokens", [4, 7, 19])
def test_a_prompt_computed_in_chunks_gets_the_same_tokens(
    world: World, cases: list[Case], max_batched_tokens: int
) -> None:
    engine = start_engine(world, max_running=4, max_batched_tokens=max_batched_tokens, prefix_cache=False)
    with EngineRun(engine) as run:
        for case in cases:
            add(run, world, case)

        assert_expected(run.finish(), cases)
        assert run.totals.steps_with_prefill_and_decode > 0
        assert max(len(case.prompt) for case in cases) > max_batched_tokens


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_a_prompt_spread_over_steps_while_others_decode_gets_the_same_tokens(
    world: World, cases: list[Case], prefix_cache: bool
) -> None:
    engine = start_engine(
        world, max_running=6, prefix_cache=prefix_cache, prefill_spread_steps=10, min_prefill_rows=2
    )
    with EngineRun(engine) as run:
        run.load(*world.digests.values())
        for case in cases:
            add(run, world, case)
            for _ in range(4):  # so that there are few at a time
                run.step()

        assert_expected(run.finish(), cases)
        assert run.totals.steps_with_prefill_and_decode > len(cases), "prompts went in whole"
        run.assert_nothing_is_left(*world.digests.values())


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_a_preempted_request_gets_the_same_tokens(
    world: World, cases: list[Case], prefix_cache: bool
) -> None:
    with EngineRun(start_engine(world, num_blocks=32, max_running=8, prefix_cache=prefix_cache)) as run:
        for case in cases:
            add(run, world, case)

        assert_expected(run.finish(), cases)
        assert run.totals.preemptions > 0
        run.assert_nothing_is_left(*world.digests.values())


def test_a_request_that_finds_its_prefix_gets_the_same_tokens(world: World, cases: list[Case]) -> None:
    with EngineRun(start_engine(world)) as run:
        for case in (*cases, *cases):
            add(run, world, case)
            run.finish()

        assert_expected(run.completions, [*cases, *cases])
        again = run.completions[len(cases) :]
        assert any(completion.num_cached > 0 for completion in again)
        for completion in again:  # all full blocks, but for the last token
            assert completion.num_cached == (len(completion.prompt) - 1) // 4 * 4


def test_requests_that_share_a_beginning_across_adapters_do_not_share_its_values(
    world: World, cases: list[Case]
) -> None:
    """vLLM #42125: cached blocks of other weights were reused."""
    sharing = [case for case in cases if case.prompt[:12] == cases[1].prompt[:12]]
    assert len({case.adapter for case in sharing}) == len(ADAPTERS) + 1
    with EngineRun(start_engine(world)) as run:
        for case in sharing:
            add(run, world, case)
            run.finish()

        assert_expected(run.completions, sharing)
        assert 0 < run.totals.prefix_hit_tokens == 12 * (len(sharing) - len(ADAPTERS) - 1)


@pytest.mark.parametrize("adapter_slots", [1, 2])
def test_adapters_that_take_turns_in_few_slots_give_the_same_tokens(
    world: World, cases: list[Case], adapter_slots: int
) -> None:
    order = random.Random(3).sample(cases, len(cases))
    with EngineRun(start_engine(world, adapter_slots=adapter_slots, max_running=4)) as run:
        for _ in range(2):  # what the first round had to evict, the second brings back
            for case in order:
                add(run, world, case)
            completions = run.finish()

        assert_expected(completions, [*order, *order])
        assert run.totals.max_batch_adapters <= adapter_slots
        assert run.totals.adapter_evictions > 0
        assert run.totals.adapter_activations > len(ADAPTERS), "no adapter ever came back"


def test_an_adapter_that_was_forgotten_is_read_again_for_the_next_request(
    world: World, cases: list[Case]
) -> None:
    case = next(case for case in cases if case.adapter == "rank-16")
    digest = world.digests["rank-16"]
    with EngineRun(start_engine(world)) as run:
        first = add(run, world, case)
        while not run.completions[first].tokens:
            run.step()
        run.engine.forget_adapter(digest)  # while in use: it stays until its last request ends
        run.finish()
        assert run.engine.stats().adapter_slots_used == 0

        add(run, world, case)

        assert_expected(run.finish(), [case, case])
        assert run.totals.adapter_loads == 2
