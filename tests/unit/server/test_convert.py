"""Every documented range of a request is checked, with the field's name, and all at once."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from loraplex.v1 import inference_pb2
from loraplex.v1.inference_pb2 import CountTokensRequest, GenerateRequest
from loraplex_adapters.errors import InvalidRequestError
from loraplex_adapters.names import AdapterName, AdapterReference
from loraplex_server.engine.messages import FinishReason, SamplingParams, SequenceTimings, TokenLogprob
from loraplex_server.generation import DEFAULT_MAX_TOKENS, Finished, GenerationRequest, TextDelta
from loraplex_server.rpc import convert
from loraplex_server.rpc.convert import count_request, generation_request
from loraplex_server.tokenizer import BaseTokenizer, ChatMessage
from tests.unit.server.tokenizers import byte_level

VOCAB_SIZE, MAX_OUTPUT = 1000, 512


def bare(**fields: Any) -> GenerateRequest:
    """Messages within are given as dictionaries."""
    return GenerateRequest(**fields)


def request(**fields: Any) -> GenerateRequest:
    """With a prompt."""
    return bare(prompt="hi", **fields)


def count(**fields: Any) -> CountTokensRequest:
    return CountTokensRequest(**fields)


def converted(message: GenerateRequest, time_remaining_s: float | None = None) -> GenerationRequest:
    return generation_request(message, VOCAB_SIZE, MAX_OUTPUT, time_remaining_s)


def violations(message: GenerateRequest) -> list[str]:
    """Fields that are wrong."""
    with pytest.raises(InvalidRequestError) as caught:
        converted(message)
    return [violation.field for violation in caught.value.violations]


SAMPLING_RANGES: dict[str, tuple[list[float], list[float]]] = {
    "temperature": ([0, 1e-6, 2], [-1e-6, 2.001, math.inf, math.nan]),
    "top_k": ([0, 1, VOCAB_SIZE], [VOCAB_SIZE + 1, 2**32 - 1]),
    "top_p": ([1e-6, 1], [0, -0.5, 1.001, math.nan]),
    "min_p": ([0, 1], [-0.001, 1.001, math.nan]),
    "repetition_penalty": ([1e-6, 2], [0, -1, 2.001, math.nan]),
    "presence_penalty": ([-2, 0, 2], [-2.001, 2.001, math.nan]),
    "frequency_penalty": ([-2, 0, 2], [-2.001, 2.001, math.nan]),
}


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, (good, _) in SAMPLING_RANGES.items() for v in good]
)
def test_a_sampling_value_at_either_end_of_its_range_is_taken(name: str, value: float) -> None:
    sampling = converted(request(sampling={name: value})).sampling
    assert getattr(sampling, name) == pytest.approx(value)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, (_, bad) in SAMPLING_RANGES.items() for v in bad])
def test_a_sampling_value_out_of_its_range_is_refused(name: str, value: float) -> None:
    assert violations(request(sampling={name: value})) == [f"sampling.{name}"]


def test_the_ranges_cover_every_sampling_field() -> None:
    fields = {field.name for field in inference_pb2.SamplingParams.DESCRIPTOR.fields}
    assert fields == {*SAMPLING_RANGES, "logit_bias", "seed"}


def many(count: int, value: float = 1.0) -> dict[int, float]:
    return dict.fromkeys(range(count), value)


ACCEPTED: list[dict[str, object]] = [
    {"sampling": {"logit_bias": many(300)}},
    {"sampling": {"logit_bias": {0: -100.0, VOCAB_SIZE - 1: 100.0}}},
    {"sampling": {"seed": 2**64 - 1}},
    {"stopping": {"max_tokens": 1}},
    {"stopping": {"max_tokens": MAX_OUTPUT, "min_tokens": MAX_OUTPUT}},
    {"stopping": {"min_tokens": DEFAULT_MAX_TOKENS}},
    {"stopping": {"stop_strings": ["x"] * 16}},
    {"stopping": {"stop_strings": ["x" * 256, "é" * 128]}},
    {"stopping": {"stop_token_ids": [VOCAB_SIZE - 1] * 64}},
    {"options": {"top_logprobs": 0}},
    {"options": {"top_logprobs": 20}},
    {"request_id": "~" * 128},
    {"adapter": "a/b"},
]
REFUSED: list[tuple[dict[str, object], list[str]]] = [
    ({"sampling": {"logit_bias": many(301)}}, ["sampling.logit_bias"]),
    ({"sampling": {"logit_bias": {VOCAB_SIZE: 1.0}}}, [f"sampling.logit_bias[{VOCAB_SIZE}]"]),
    ({"sampling": {"logit_bias": {3: 100.5}}}, ["sampling.logit_bias[3]"]),
    ({"sampling": {"logit_bias": {3: -100.5}}}, ["sampling.logit_bias[3]"]),
    ({"sampling": {"logit_bias": {3: math.nan}}}, ["sampling.logit_bias[3]"]),
    ({"stopping": {"max_tokens": 0}}, ["stopping.max_tokens"]),
    ({"stopping": {"max_tokens": MAX_OUTPUT + 1}}, ["stopping.max_tokens"]),
    ({"stopping": {"max_tokens": 4, "min_tokens": 5}}, ["stopping.min_tokens"]),
    ({"stopping": {"min_tokens": DEFAULT_MAX_TOKENS + 1}}, ["stopping.min_tokens"]),
    ({"stopping": {"stop_strings": ["x"] * 17}}, ["stopping.stop_strings"]),
    ({"stopping": {"stop_strings": [""]}}, ["stopping.stop_strings"]),
    ({"stopping": {"stop_strings": ["é" * 129]}}, ["stopping.stop_strings"]),
    ({"stopping": {"stop_token_ids": [VOCAB_SIZE]}}, ["stopping.stop_token_ids"]),
    ({"stopping": {"stop_token_ids": [1] * 65}}, ["stopping.stop_token_ids"]),
    ({"options": {"top_logprobs": 21}}, ["options.top_logprobs"]),
    ({"request_id": "x" * 129}, ["request_id"]),
    ({"request_id": "é"}, ["request_id"]),
    ({"request_id": "a\nb"}, ["request_id"]),
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=lambda fields: str(fields)[:60])
def test_a_field_at_the_end_of_its_range_is_taken(fields: dict[str, object]) -> None:
    converted(request(**fields))


@pytest.mark.parametrize(("fields", "expected"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_field_out_of_its_range_is_refused(fields: dict[str, object], expected: list[str]) -> None:
    assert violations(request(**fields)) == expected


INPUTS: list[tuple[GenerateRequest, str]] = [
    (bare(), "input"),
    (bare(prompt=""), "prompt"),
    (bare(chat={"messages": []}), "chat.messages"),
    (bare(chat={"messages": [{"role": "tool", "content": "x"}]}), "chat.messages[0].role"),
    (bare(chat={"messages": [{"role": "", "content": "x"}]}), "chat.messages[0].role"),
    (bare(token_ids={"ids": []}), "token_ids.ids"),
    (bare(token_ids={"ids": [1, VOCAB_SIZE]}), "token_ids.ids"),
]


@pytest.mark.parametrize(("message", "field"), INPUTS, ids=[str(message)[:40] for message, _ in INPUTS])
def test_an_input_that_is_empty_or_malformed_is_refused(message: GenerateRequest, field: str) -> None:
    assert violations(message) == [field]


def test_each_kind_of_input_becomes_a_prompt() -> None:
    turns = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant")]
    assert converted(bare(prompt="hi")).prompt == "hi"
    assert converted(bare(chat={"messages": turns})).prompt == (
        ChatMessage("system", "SYSTEM"),
        ChatMessage("user", "USER"),
        ChatMessage("assistant", "ASSISTANT"),
    )
    assert converted(bare(token_ids={"ids": [0, VOCAB_SIZE - 1]})).prompt == (0, VOCAB_SIZE - 1)


def test_all_violations_are_told_at_once() -> None:
    message = bare(
        chat={"messages": [{"role": "user", "content": ""}, {"role": "x", "content": ""}]},
        sampling={name: bad[-1] for name, (_, bad) in SAMPLING_RANGES.items()}
        | {"logit_bias": {VOCAB_SIZE: 0.0}},
        stopping={
            "max_tokens": 0,
            "min_tokens": 7,
            "stop_strings": [""] * 17,
            "stop_token_ids": [VOCAB_SIZE],
        },
        options={"top_logprobs": 21},
        request_id="é",
    )

    assert sorted(violations(message)) == sorted(
        [
            "chat.messages[1].role",
            *(f"sampling.{name}" for name in SAMPLING_RANGES),
            f"sampling.logit_bias[{VOCAB_SIZE}]",
            "stopping.stop_token_ids",
            "options.top_logprobs",
            "stopping.max_tokens",
            "stopping.min_tokens",
            "stopping.stop_strings",
            "stopping.stop_strings",
            "request_id",
        ]
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (request(sampling={"logit_bias": many(300, 200.0)}), "sampling.logit_bias"),
        (bare(chat={"messages": [{"role": "x"}] * 300}), "chat.messages"),
    ],
)
def test_many_wrong_entries_of_one_field_are_summed_up(message: GenerateRequest, field: str) -> None:
    """They would not fit into a status, and crowd out what else is wrong."""
    with pytest.raises(InvalidRequestError) as caught:
        converted(message)

    *listed, last = caught.value.violations
    assert len(listed) == 3
    assert all(violation.field.startswith(f"{field}[") for violation in listed)
    assert last.field == field
    assert last.description.startswith("and 297 more entries: ")


def test_a_message_says_the_value_and_the_range() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        converted(request(sampling={"temperature": 3, "top_p": 0}))
    assert str(caught.value) == (
        "sampling.temperature: is 3; must be in [0, 2]; sampling.top_p: is 0; must be in (0, 1]"
    )


def test_unset_fields_take_the_documented_defaults() -> None:
    made = converted(request())
    assert made == GenerationRequest(adapter=None, prompt="hi", sampling=SamplingParams())
    assert (made.sampling.temperature, made.sampling.top_p, made.sampling.repetition_penalty) == (
        1.0,
        1.0,
        1.0,
    )


def test_zero_is_not_unset() -> None:
    made = converted(request(sampling={"temperature": 0, "seed": 0}, options={"top_logprobs": 0}))
    assert (made.sampling.temperature, made.seed, made.sampling.top_logprobs) == (0.0, 0, 0)


def test_every_field_arrives() -> None:
    made = converted(
        bare(
            adapter="finance/faq@canary",
            prompt="hi",
            sampling={"temperature": 0.5, "top_k": 3, "logit_bias": {5: -1.5}, "seed": 2**63},
            stopping={
                "max_tokens": 9,
                "min_tokens": 2,
                "stop_strings": ["\n", "END"],
                "stop_token_ids": [4, 7],
                "ignore_eos": True,
            },
            options={"top_logprobs": 5},
            request_id="mine",
            routing_key="customer-7",
        ),
        time_remaining_s=10.0,
    )

    assert made.adapter == AdapterReference(AdapterName("finance", "faq"), "canary")
    assert (made.max_tokens, made.seed, made.request_id) == (9, 2**63, "mine")
    assert made.routing_key == "customer-7"
    assert made.stop_strings == ("\n", "END")
    assert made.sampling == SamplingParams(
        temperature=0.5,
        top_k=3,
        logit_bias={5: -1.5},
        min_tokens=2,
        stop_token_ids=(4, 7),
        ignore_eos=True,
        top_logprobs=5,
    )
    assert made.deadline_s == pytest.approx(time.monotonic() + 10, abs=5)


def test_a_count_request_is_checked_alike() -> None:
    assert count_request(count(prompt="hi")) == "hi"
    for message in (
        count(),
        count(prompt=""),
        count(chat={"messages": [{"role": "x"}]}),
    ):
        with pytest.raises(InvalidRequestError):
            count_request(message)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BaseTokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    byte_level().save(str(folder / "tokenizer.json"))
    return BaseTokenizer(folder)


def test_a_delta_shows_ids_and_log_probabilities_only_if_there_are_any(tokenizer: BaseTokenizer) -> None:
    [a, b] = tokenizer.encode("a") + tokenizer.encode("b")
    delta = TextDelta("ab", [a, b], [TokenLogprob(a, -0.5, [(a, -0.5), (b, -math.inf)])])

    message = convert.delta_message(delta, tokenizer, include_token_ids=True)
    short = convert.delta_message(TextDelta("ab", [a, b]), tokenizer, include_token_ids=False)

    assert (message.text, message.token_count, list(message.token_ids)) == ("ab", 2, [a, b])
    [position] = message.logprobs
    assert (position.chosen.token_id, position.chosen.text, position.chosen.logprob) == (a, "a", -0.5)
    assert [(entry.text, entry.logprob) for entry in position.top] == [("a", -0.5), ("b", -1e9)]
    assert short == inference_pb2.Delta(text="ab", token_count=2)


def test_the_end_of_a_completion_is_told_whole() -> None:
    finished = Finished(FinishReason.STOP, 7, 4, 9, SequenceTimings(0.5, 0.25, 1.5, 3.0))

    message = convert.finished_message(finished)

    assert message.finish_reason == inference_pb2.FINISH_REASON_STOP
    usage = message.usage
    assert (usage.prompt_tokens, usage.cached_prompt_tokens, usage.completion_tokens) == (7, 4, 9)
    timings = message.timings
    assert (timings.queue_seconds, timings.adapter_load_seconds) == (0.5, 0.25)
    assert (timings.prefill_seconds, timings.decode_seconds) == (1.5, 3.0)


def test_every_finish_that_a_caller_can_meet_has_its_enum_value() -> None:
    table = convert._FINISH_REASONS

    assert table.keys() == {FinishReason.STOP, FinishReason.LENGTH}
    assert 0 not in table.values(), "0 is UNSPECIFIED"
