"""Requests of different adapters run in the same steps, and each answers as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, LlamaForCausalLM

from loraplex_client import AsyncLoraplexClient, LoraplexClient
from tests.integration.conftest import ADAPTERS
from tests.integration.live_server import LiveServer
from tests.integration.streams import GREEDY, PROMPT, answer_all, collect_async

Logprobs = Callable[[str, list[int]], torch.Tensor]


@pytest.fixture(scope="module")
def peft_logprobs(tiny_base: Path, packages: Path) -> Logprobs:
    """Log-probabilities [tokens, vocabulary] of a token sequence, by transformers and PEFT; "" is the base."""
    model = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(tiny_base), packages / ADAPTERS[0], ADAPTERS[0]
    )
    for name in ADAPTERS[1:]:
        model.load_adapter(packages / name, name)

    @torch.inference_mode()
    def logprobs(adapter: str, ids: list[int]) -> torch.Tensor:
        if adapter:
            model.set_adapter(adapter)
        with nullcontext() if adapter else model.disable_adapter():
            logits: torch.Tensor = model(torch.tensor([ids])).logits
        return logits[0].log_softmax(-1)

    return logprobs


@pytest.mark.parametrize("adapter", ["", *ADAPTERS])
def test_a_served_answer_is_the_one_peft_gives_on_the_same_weights(
    client: LoraplexClient, tiny_base: Path, peft_logprobs: Logprobs, adapter: str
) -> None:
    answer = client.generate(PROMPT, adapter=adapter, logprobs=0, **GREEDY)

    prompt = AutoTokenizer.from_pretrained(tiny_base).encode(PROMPT)
    expected = peft_logprobs(adapter, [*prompt, *answer.token_ids])[len(prompt) - 1 : -1]
    assert tuple(expected.argmax(-1).tolist()) == answer.token_ids
    served = torch.tensor([position.chosen.logprob for position in answer.logprobs])
    torch.testing.assert_close(served, expected.max(-1).values, atol=1e-4, rtol=0)


async def test_requests_of_different_adapters_share_steps_and_answer_as_if_alone(
    server: LiveServer, aclient: AsyncLoraplexClient
) -> None:
    """llama.cpp #10374, #10377: another adapter disturbed running requests; since then each waits for its turn."""
    requests: list[dict[str, Any]] = [
        # Long enough that the last request arrives while the first still runs, however fast a step is.
        {"prompt": f"{PROMPT} Question {number}.", "adapter": adapter, **GREEDY, "max_tokens": 320}
        for number in range(4)
        for adapter in ("", *ADAPTERS)
    ]
    alone = [(await aclient.generate(**request)).token_ids for request in requests]
    steps = server.metric("loraplex_batch_adapters_count")
    unmixed = server.metric("loraplex_batch_adapters_bucket", le="1.0")

    together = await answer_all(aclient, requests)

    assert [answer.token_ids for answer in together] == alone
    num_steps = server.metric("loraplex_batch_adapters_count") - steps
    num_mixed = num_steps - (server.metric("loraplex_batch_adapters_bucket", le="1.0") - unmixed)
    assert num_mixed > num_steps / 3


async def test_streams_of_unequal_lengths_come_and_go_without_changing_each_other(
    aclient: AsyncLoraplexClient,
) -> None:
    requests: list[dict[str, Any]] = [
        {
            "prompt": PROMPT * (1 + number % 5),
            "adapter": ("", *ADAPTERS)[number % 4],
            **GREEDY,
            "max_tokens": 3 + 7 * (number % 6),
        }
        for number in range(24)
    ]
    alone = [(await aclient.generate(**request)).token_ids for request in requests]

    streams = [aclient.stream(**request) for request in requests]
    together = [(await collect_async(stream)).token_ids for stream in streams]

    assert together == alone
