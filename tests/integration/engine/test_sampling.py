"""Sampling parameters through a whole engine: draws, penalties, bias, ends, log-probabilities (fp32)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex_server.engine.messages import FinishReason
from loraplex_server.engine.sampler import exponentials
from tests.integration.engine.conftest import MIN_LEAD, Case
from tests.integration.engine.reference import PeftReference
from tests.integration.engine.run import Completion, EngineRun
from tests.integration.engine.world import CONTEXT, EOS, VOCAB_SIZE, World, start_engine

SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 12},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 0.9, "frequency_penalty": 0.6, "presence_penalty": 0.3, "logit_bias": {7: 3.0}},
]
PROMPT = [5, 17, 44, 6, 80, 23]


def alone(world: World, prompt: list[int], adapter: str | None = None, **sampling: Any) -> Completion:
    with EngineRun(start_engine(world)) as run:
        run.add(prompt, world.digest(adapter), **sampling)
        return run.finish()[0]


def sampled_requests(cases: list[Case]) -> list[tuple[Case, dict[str, Any]]]:
    return [
        (case, {**SAMPLED[index % len(SAMPLED)], "seed": 1000 + index, "max_tokens": 20})
        for index, case in enumerate(cases)
    ]


@pytest.fixture(scope="module")
def drawn_alone(world: World, cases: list[Case]) -> list[list[int]]:
    with EngineRun(start_engine(world, prefix_cache=False)) as run:
        for case, sampling in sampled_requests(cases):
            run.add(case.prompt, world.digest(case.adapter), **sampling)
            run.finish()
    assert sum(c.tokens != case.expected for c, case in zip(run.completions, cases, strict=True)) > 25
    return [completion.tokens for completion in run.completions]


@pytest.mark.parametrize(
    "changes",
    [
        {"max_running": 40, "max_batched_tokens": 2048},
        {"max_running": 5, "max_batched_tokens": 9},
        {"num_blocks": 32, "max_running": 8},
        {"adapter_slots": 1},
    ],
    ids=["mixed", "chunked", "preempted", "evicted"],
)
def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch(
    world: World, cases: list[Case], drawn_alone: list[list[int]], changes: dict[str, int]
) -> None:
    with EngineRun(start_engine(world, **changes)) as run:
        for case, sampling in sampled_requests(cases):
            run.add(case.prompt, world.digest(case.adapter), **sampling)

        assert [completion.tokens for completion in run.finish()] == drawn_alone
        assert run.totals.max_batch_sequences > 1
        assert run.totals.preemptions > 0 or "num_blocks" not in changes


def test_seeds_matter(world: World) -> None:
    drawn = {tuple(alone(world, PROMPT, temperature=1.0, seed=seed).tokens) for seed in range(5)}
    assert len(drawn) == 5


def test_draws_win_the_race_under_the_distribution_of_the_reference(
    world: World, reference: PeftReference
) -> None:
    completion = alone(world, PROMPT, "rank-16", temperature=0.8, seed=77, max_tokens=30)

    masses = (generated_logits(reference, "rank-16", completion) / 0.8).softmax(-1)
    for index, token in enumerate(completion.tokens):
        arrivals = exponentials(77, index, torch.arange(VOCAB_SIZE)) / masses[index]
        assert arrivals[token] <= arrivals.min() * (1 + 1e-4)


def generated_logits(reference: PeftReference, adapter: str | None, completion: Completion) -> Tensor:
    """Those that each token of the completion was chosen from, [tokens, vocab]."""
    whole = completion.prompt + completion.tokens
    return reference.logits(adapter, whole)[len(completion.prompt) - 1 : -1]


def assert_greedy(
    reference: PeftReference, completion: Completion, adjust: Callable[[Tensor, list[int]], None]
) -> None:
    """Each token is the best of the reference's logits [vocab], adjusted in place knowing the tokens before it."""
    unlike_plain = 0
    for index, logits in enumerate(generated_logits(reference, None, completion)):
        plain = int(logits.argmax())
        adjust(logits, completion.tokens[:index])
        token = completion.tokens[index]
        assert logits[token] >= logits.max() - MIN_LEAD
        unlike_plain += token != plain
    assert unlike_plain > 0, "the parameter changed nothing"


def test_repetition_penalty_counts_prompt_and_completion(world: World, reference: PeftReference) -> None:
    completion = alone(world, PROMPT, repetition_penalty=1.5, max_tokens=24)

    def adjust(logits: Tensor, output: list[int]) -> None:
        for token in {*PROMPT, *output}:
            logits[token] = logits[token] / 1.5 if logits[token] > 0 else logits[token] * 1.5

    assert_greedy(reference, completion, adjust)


def test_presence_and_frequency_penalty_count_the_completion(world: World, reference: PeftReference) -> None:
    completion = alone(world, PROMPT, presence_penalty=0.9, frequency_penalty=0.7, max_tokens=24)

    def adjust(logits: Tensor, output: list[int]) -> None:
        for token, times in Counter(output).items():
            logits[token] -= 0.9 + 0.7 * times

    assert_greedy(reference, completion, adjust)


def test_penalties_of_a_preempted_request_still_know_its_tokens(
    world: World, reference: PeftReference
) -> None:
    with EngineRun(start_engine(world, num_blocks=14, max_running=4)) as run:
        for _ in range(3):
            run.add(PROMPT, presence_penalty=0.9, max_tokens=24)
        completions = run.finish()
        assert run.totals.preemptions > 0

    assert len({tuple(completion.tokens) for completion in completions}) == 1

    def adjust(logits: Tensor, output: list[int]) -> None:
        logits[list(set(output))] -= 0.9

    assert_greedy(reference, completions[-1], adjust)


def test_logit_bias_is_added(world: World, reference: PeftReference) -> None:
    completion = alone(world, PROMPT, logit_bias={11: 100.0, 12: 70.0})
    assert completion.tokens == [11] * 16

    plain = alone(world, PROMPT).tokens
    completion = alone(world, PROMPT, logit_bias={plain[0]: -100.0})
    assert plain[0] not in completion.tokens
    assert completion.tokens[0] == int(reference.logits(None, PROMPT)[-1].topk(2).indices[1])


def test_a_stop_id_ends_the_completion_with_stop_at_its_first_occurrence(world: World) -> None:
    plain = alone(world, PROMPT, "rank-16").tokens
    stop = plain[4]

    completion = alone(world, PROMPT, "rank-16", stop_token_ids=(stop,))

    assert completion.tokens == plain[: plain.index(stop) + 1]
    assert completion.finish_reason is FinishReason.STOP


def test_the_end_of_sequence_ends_the_completion_unless_it_is_ignored(world: World) -> None:
    completion = alone(world, PROMPT, ignore_eos=False, logit_bias={EOS: 100.0})
    assert (completion.tokens, completion.finish_reason) == ([EOS], FinishReason.STOP)

    completion = alone(world, PROMPT, ignore_eos=True, logit_bias={EOS: 100.0}, max_tokens=5)
    assert (completion.tokens, completion.finish_reason) == ([EOS] * 5, FinishReason.LENGTH)


def test_no_end_comes_before_min_tokens(world: World) -> None:
    plain = alone(world, PROMPT).tokens
    bias = {EOS: 100.0, 33: 70.0}

    completion = alone(
        world, PROMPT, ignore_eos=False, logit_bias=bias, stop_token_ids=(33,), min_tokens=4, max_tokens=9
    )

    assert completion.tokens == [*completion.tokens[:4], EOS]
    assert not {EOS, 33} & set(completion.tokens[:4])
    assert completion.tokens[0] == plain[0]  # what is left is chosen as ever
    assert completion.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(("sampling", "num_tokens"), [({"max_tokens": 3}, 3), ({"max_tokens": 1000}, 30)])
def test_max_tokens_and_the_context_end_a_completion_with_length(
    world: World, sampling: dict[str, Any], num_tokens: int
) -> None:
    completion = alone(world, [9] * (CONTEXT - 30), **sampling)
    assert len(completion.tokens) == num_tokens
    assert completion.finish_reason is FinishReason.LENGTH


def test_log_probabilities_follow_bias_and_penalties_but_not_temperature(
    world: World, reference: PeftReference
) -> None:
    completion = alone(
        world,
        PROMPT,
        "patterns",
        temperature=1.9,
        top_k=5,
        seed=4,
        logit_bias={60: 4.0},
        presence_penalty=1.5,
        top_logprobs=3,
    )

    logits = generated_logits(reference, "patterns", completion)
    for index, (row, position) in enumerate(zip(logits, completion.logprobs, strict=True)):
        row[60] += 4.0
        row[list(set(completion.tokens[:index]))] -= 1.5
        expected = row.log_softmax(-1)
        assert position.token_id == completion.tokens[index]
        assert position.logprob == pytest.approx(float(expected[position.token_id]), abs=1e-4)
        best = expected.topk(3)
        assert [value for _, value in position.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        if float((best.values[:-1] - best.values[1:]).min()) > MIN_LEAD:
            assert [token_id for token_id, _ in position.top] == best.indices.tolist()


@pytest.mark.parametrize("top_logprobs", [None, 0, VOCAB_SIZE])
def test_each_token_has_the_log_probabilities_that_were_asked_for(
    world: World, top_logprobs: int | None
) -> None:
    completion = alone(world, PROMPT, top_logprobs=top_logprobs)
    counts = [len(position.top) for position in completion.logprobs]
    assert counts == ([] if top_logprobs is None else [top_logprobs] * 16)
    if top_logprobs:
        total = torch.tensor([value for _, value in completion.logprobs[0].top]).exp().sum()
        assert float(total) == pytest.approx(1.0, abs=1e-5)
