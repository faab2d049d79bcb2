from __future__ import annotations

import math
from typing import Any

import grpc
import pytest

from loraplex_client import FinishReason, InvalidRequestError, LoraplexClient
from tests.integration.streams import GREEDY, PROMPT

VOCAB_SIZE = 384

OUT_OF_RANGE: list[tuple[str, dict[str, Any]]] = [
    ("sampling.temperature", {"temperature": -0.1}),
    ("sampling.temperature", {"temperature": 2.1}),
    ("sampling.temperature", {"temperature": math.nan}),
    ("sampling.temperature", {"temperature": math.inf}),
    ("sampling.top_k", {"top_k": VOCAB_SIZE + 1}),
    ("sampling.top_p", {"top_p": 0.0}),
    ("sampling.top_p", {"top_p": math.nan}),
    ("sampling.min_p", {"min_p": 1.1}),
    ("sampling.repetition_penalty", {"repetition_penalty": 0.0}),
    ("sampling.presence_penalty", {"presence_penalty": 2.5}),
    ("sampling.frequency_penalty", {"frequency_penalty": -math.inf}),
    ("sampling.logit_bias[384]", {"logit_bias": {VOCAB_SIZE: 1.0}}),
    ("sampling.logit_bias[1]", {"logit_bias": {1: math.nan}}),
    ("sampling.logit_bias", {"logit_bias": dict.fromkeys(range(301), 1.0)}),
    ("stopping.stop_strings", {"stop": ["x"] * 17}),
    ("stopping.stop_strings", {"stop": [""]}),
    ("stopping.stop_strings", {"stop": ["é" * 129]}),
    ("stopping.stop_token_ids", {"stop_token_ids": [VOCAB_SIZE]}),
    ("stopping.stop_token_ids", {"stop_token_ids": [1] * 65}),
    ("options.top_logprobs", {"logprobs": 21}),
    ("request_id", {"request_id": "naïve"}),
    ("request_id", {"request_id": "a\nb"}),
    ("request_id", {"request_id": "x" * 129}),
    ("prompt", {"prompt": ""}),
    ("chat.messages", {"messages": []}),
    ("chat.messages[1].role", {"messages": [{"role": r, "content": "x"} for r in ("user", "tool")]}),
    ("token_ids.ids", {"token_ids": []}),
    ("token_ids.ids", {"token_ids": [1, VOCAB_SIZE]}),
    ("token_ids.ids", {"token_ids": [2**32 - 1]}),
]


@pytest.mark.parametrize(("field", "options"), OUT_OF_RANGE, ids=lambda value: str(value)[:40])
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(
    client: LoraplexClient, field: str, options: dict[str, Any]
) -> None:
    if not options.keys() & {"prompt", "messages", "token_ids"}:
        options = {"prompt": PROMPT, **options}

    with pytest.raises(InvalidRequestError) as caught:
        client.generate(**options)

    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "INVALID_REQUEST"
    assert [violation.field for violation in caught.value.violations] == [field]


def test_all_faults_of_a_request_are_told_at_once(client: LoraplexClient) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.generate("", temperature=3.0, top_p=0.0, max_tokens=0, stop=[""], logprobs=99)

    assert {violation.field for violation in caught.value.violations} == {
        "prompt",
        "sampling.temperature",
        "sampling.top_p",
        "stopping.max_tokens",
        "stopping.stop_strings",
        "options.top_logprobs",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2.0, "top_k": VOCAB_SIZE, "top_p": 1.0, "min_p": 0.0},
        {"repetition_penalty": 2.0, "presence_penalty": -2.0, "frequency_penalty": 2.0},
        {"logit_bias": dict.fromkeys(range(300), -100.0), "stop_token_ids": [1] * 64},
        {"stop": ["é" * 128] * 16, "logprobs": 20, "request_id": "~" * 128},
    ],
    ids=str,
)
def test_the_ends_of_the_documented_ranges_are_served(
    client: LoraplexClient, options: dict[str, Any]
) -> None:
    assert client.generate(PROMPT, max_tokens=4, ignore_eos=True, **options).usage.completion_tokens == 4


def test_a_prompt_that_leaves_no_room_for_the_completion_is_out_of_range(client: LoraplexClient) -> None:
    size = client.server_info().limits.max_context_tokens

    with pytest.raises(InvalidRequestError) as full:
        client.generate(token_ids=[5] * size)
    with pytest.raises(InvalidRequestError) as short:
        client.generate(token_ids=[5] * (size - 9), max_tokens=10)

    assert {full.value.code, short.value.code} == {grpc.StatusCode.OUT_OF_RANGE}
    assert {full.value.reason, short.value.reason} == {"CONTEXT_OVERFLOW"}


def test_a_completion_without_bound_ends_with_the_context(tight_client: LoraplexClient) -> None:
    size = tight_client.server_info().limits.max_context_tokens
    options = {key: value for key, value in GREEDY.items() if key != "max_tokens"}

    answer = tight_client.generate(token_ids=[5] * (size - 7), **options)

    assert answer.usage.completion_tokens == 7
    assert answer.finish_reason is FinishReason.LENGTH
