from __future__ import annotations

import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from loraplex_client import (
    AsyncLoraplexClient,
    FinishReason,
    InvalidRequestError,
    LoraplexClient,
    NotFoundError,
)
from tests.integration.conftest import ADAPTERS
from tests.integration.streams import GREEDY, PROMPT, collect, collect_async

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "When does the course begin?"},
]


@pytest.mark.parametrize("adapter", ["", *ADAPTERS])
def test_the_joined_deltas_of_a_stream_are_the_unary_answer(client: LoraplexClient, adapter: str) -> None:
    stream = collect(client.stream(PROMPT, adapter=adapter, **GREEDY))
    unary = client.generate(PROMPT, adapter=adapter, **GREEDY)

    assert stream.text == unary.text != ""
    assert stream.token_ids == unary.token_ids
    assert stream.finished.finish_reason == unary.finish_reason == FinishReason.LENGTH
    assert stream.finished.usage.completion_tokens == unary.usage.completion_tokens == 24
    assert stream.started.adapter_digest == unary.adapter_digest


async def test_the_async_client_gets_the_same_events_as_the_sync_one(
    client: LoraplexClient, aclient: AsyncLoraplexClient
) -> None:
    sync = collect(client.stream(PROMPT, adapter="red", request_id="same", **GREEDY))
    asynchronous = await collect_async(aclient.stream(PROMPT, adapter="red", request_id="same", **GREEDY))

    assert asynchronous.text == sync.text
    assert asynchronous.token_ids == sync.token_ids
    assert asynchronous.started == sync.started


def test_the_text_is_the_decoding_of_the_tokens(client: LoraplexClient, tiny_base: Path) -> None:
    answer = client.generate(PROMPT, adapter="green", **{**GREEDY, "max_tokens": 200})

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_each_adapter_answers_differently_and_says_which_weights_it_is(client: LoraplexClient) -> None:
    answers = {name: client.generate(PROMPT, adapter=name, **GREEDY) for name in ("", *ADAPTERS)}

    assert len({answer.text for answer in answers.values()}) == 4
    assert answers[""].adapter_digest == ""
    for name in ADAPTERS:
        assert answers[name].adapter_digest == client.adapters.get(name).digest
    fingerprints = {answer.base_fingerprint for answer in answers.values()}
    assert fingerprints == {client.server_info().base_model.fingerprint}


def test_usage_counts_the_tokens_that_were_streamed(client: LoraplexClient) -> None:
    stream = collect(client.stream(PROMPT, adapter="blue", **GREEDY))

    usage = stream.finished.usage
    assert sum(delta.token_count for delta in stream.deltas) == usage.completion_tokens
    assert len(stream.token_ids) == usage.completion_tokens
    assert stream.started.prompt_tokens == usage.prompt_tokens == client.count_tokens(PROMPT)
    assert usage.cached_prompt_tokens <= usage.prompt_tokens


def test_token_ids_are_sent_only_if_asked_for(client: LoraplexClient) -> None:
    stream = collect(client.stream(PROMPT, **{**GREEDY, "include_token_ids": False}))

    assert stream.token_ids == ()
    assert stream.finished.usage.completion_tokens == 24


def test_timings_add_up_to_no_more_than_the_time_the_caller_waited(client: LoraplexClient) -> None:
    started_s = time.monotonic()
    timings = client.generate(PROMPT, adapter="red", **GREEDY).timings
    waited_s = time.monotonic() - started_s

    parts = (timings.queue_seconds, timings.prefill_seconds, timings.decode_seconds)
    assert all(part > 0 for part in parts)
    assert sum(parts) <= waited_s
    assert 0 <= timings.adapter_load_seconds <= timings.queue_seconds


def test_a_chat_is_the_prompt_that_the_models_own_template_makes_of_it(
    client: LoraplexClient, tiny_base: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)

    chat = client.generate(messages=CHAT, adapter="red", **GREEDY)

    assert chat.token_ids == client.generate(rendered, adapter="red", **GREEDY).token_ids
    assert chat.usage.prompt_tokens == client.count_tokens(messages=CHAT) == len(tokenizer.encode(rendered))


def test_token_ids_are_the_prompt_as_they_are(client: LoraplexClient, tiny_base: Path) -> None:
    ids = AutoTokenizer.from_pretrained(tiny_base).encode(PROMPT)

    by_ids = client.generate(token_ids=ids, adapter="green", **GREEDY)

    assert by_ids.token_ids == client.generate(PROMPT, adapter="green", **GREEDY).token_ids


def test_a_conversation_that_the_template_refuses_is_an_invalid_request(client: LoraplexClient) -> None:
    with pytest.raises(InvalidRequestError, match="the system message must come first") as caught:
        client.generate(messages=[*CHAT[1:], *CHAT[:1]])

    assert [violation.field for violation in caught.value.violations] == ["chat"]


def test_the_callers_request_id_comes_back_and_a_missing_one_is_drawn(client: LoraplexClient) -> None:
    options = {**GREEDY, "max_tokens": 1}

    assert client.generate(PROMPT, request_id="order 17", **options).request_id == "order 17"
    drawn = {client.generate(PROMPT, **options).request_id for _ in range(3)}
    assert len(drawn) == 3
    assert "" not in drawn


def test_an_unknown_adapter_is_not_found_and_never_answered_by_the_base(client: LoraplexClient) -> None:
    with pytest.raises(NotFoundError) as unary:
        client.generate(PROMPT, adapter="no/such", **GREEDY)
    with pytest.raises(NotFoundError) as stream:
        collect(client.stream(PROMPT, adapter="no/such", **GREEDY))

    assert unary.value.reason == stream.value.reason == "ADAPTER_NOT_FOUND"
    assert unary.value.request_id != stream.value.request_id
