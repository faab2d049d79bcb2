from __future__ import annotations

import math
from typing import Any

import pytest

from loraplex_client import AsyncLoraplexClient, LoraplexClient
from tests.integration.conftest import ADAPTERS
from tests.integration.streams import ENDLESS, GREEDY, PROMPT, answer_all, begin

SAMPLED: dict[str, Any] = {
    "temperature": 1.0,
    "ignore_eos": True,
    "max_tokens": 24,
    "include_token_ids": True,
}


def seeded(adapter: str, seed: int) -> dict[str, Any]:
    return {"prompt": PROMPT, "adapter": adapter, "seed": seed, **SAMPLED}


def test_the_same_seed_gives_the_same_completion_and_another_one_another(client: LoraplexClient) -> None:
    first, again, other = (client.generate(**seeded("red", seed)) for seed in (7, 7, 8))

    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


def test_without_a_seed_completions_differ(client: LoraplexClient) -> None:
    assert len({client.generate(PROMPT, **SAMPLED).token_ids for _ in range(3)}) == 3


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_the_ends_of_the_range_of_seeds_are_seeds(client: LoraplexClient, seed: int) -> None:
    assert client.generate(**seeded("", seed)).token_ids == client.generate(**seeded("", seed)).token_ids


async def test_a_seeded_completion_is_the_same_amid_other_traffic(aclient: AsyncLoraplexClient) -> None:
    requests = [seeded(adapter, seed) for adapter in ("", *ADAPTERS) for seed in range(4)]
    alone = [(await aclient.generate(**request)).token_ids for request in requests]

    async with aclient.stream(PROMPT, adapter="blue", **ENDLESS) as traffic:
        await begin(traffic)
        together = await answer_all(aclient, requests)

    assert [answer.token_ids for answer in together] == alone


@pytest.mark.parametrize("num_alternatives", [0, 1, 20])
def test_logprobs_describe_every_token(client: LoraplexClient, num_alternatives: int) -> None:
    answer = client.generate(PROMPT, adapter="red", seed=3, logprobs=num_alternatives, **SAMPLED)

    assert tuple(position.chosen.token_id for position in answer.logprobs) == answer.token_ids
    for position in answer.logprobs:
        best_first = [entry.logprob for entry in position.top]
        assert len(best_first) == num_alternatives
        assert best_first == sorted(best_first, reverse=True)
        assert position.chosen.logprob <= max(best_first, default=0.0) <= 0
        assert sum(map(math.exp, best_first)) <= 1 + 1e-5
        by_id = {entry.token_id: entry.logprob for entry in position.top}
        assert by_id.get(position.chosen.token_id, position.chosen.logprob) == position.chosen.logprob


def test_the_greedy_token_is_the_most_likely_one(client: LoraplexClient) -> None:
    answer = client.generate(PROMPT, adapter="green", logprobs=1, **GREEDY)

    assert [position.top[0] for position in answer.logprobs] == [p.chosen for p in answer.logprobs]


def test_no_logprobs_are_sent_unless_asked_for(client: LoraplexClient) -> None:
    assert client.generate(PROMPT, **GREEDY).logprobs == ()


def test_a_banned_token_never_comes_and_a_pushed_one_always(client: LoraplexClient) -> None:
    usual = client.generate(PROMPT, **GREEDY).token_ids

    without = client.generate(PROMPT, logit_bias={usual[0]: -100.0}, **GREEDY).token_ids
    pushed = client.generate(PROMPT, logit_bias={usual[3]: 100.0}, **GREEDY).token_ids

    assert usual[0] not in without
    assert set(pushed) == {usual[3]}


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_keeping_only_the_most_likely_token_is_greedy_decoding(client: LoraplexClient, options: Any) -> None:
    greedy = client.generate(PROMPT, adapter="blue", **GREEDY)
    narrowed = client.generate(PROMPT, adapter="blue", **SAMPLED, **options)

    assert narrowed.token_ids == greedy.token_ids
