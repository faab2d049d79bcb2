from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex_client.requests import (
    GenerateOptions,
    count_request,
    generate_request,
)

_SAMPLING = {
    "temperature": st.floats(0, 2, width=32),
    "top_k": st.integers(0, 50_000),
    "top_p": st.floats(0, 1, width=32),
    "min_p": st.floats(0, 1, width=32),
    "repetition_penalty": st.floats(0, 2, width=32),
    "presence_penalty": st.floats(-2, 2, width=32),
    "frequency_penalty": st.floats(-2, 2, width=32),
    "seed": st.integers(0, 2**64 - 1),
}
_STOPPING = {
    "max_tokens": st.integers(0, 4096),
    "min_tokens": st.integers(0, 4096),
    "ignore_eos": st.booleans(),
}


@given(
    sampling=st.fixed_dictionaries({}, optional=_SAMPLING),
    stopping=st.fixed_dictionaries({}, optional=_STOPPING),
)
def test_what_is_given_is_set_even_when_it_is_zero_and_the_rest_stays_unset(
    sampling: dict[str, Any], stopping: dict[str, Any]
) -> None:
    options: Any = {**sampling, **stopping}

    request = generate_request("hi", None, None, options)

    for name in _SAMPLING:
        assert request.sampling.HasField(name) == (name in sampling)  # type: ignore[arg-type]
    for name in _STOPPING:
        assert request.stopping.HasField(name) == (name in stopping)  # type: ignore[arg-type]
    assert {name: getattr(request.sampling, name) for name in sampling} == sampling
    assert {name: getattr(request.stopping, name) for name in stopping} == stopping


def test_every_option_reaches_the_wire() -> None:
    options: GenerateOptions = {
        "adapter": "finance",
        "logit_bias": {7: -1.5},
        "stop": ["\n", "END"],
        "stop_token_ids": [3],
        "logprobs": 0,
        "include_token_ids": True,
        "request_id": "mine",
        "routing_key": "customer-7",
    }

    request = generate_request(None, None, [1, 2], options)

    assert request.adapter == "finance"
    assert dict(request.sampling.logit_bias) == {7: -1.5}
    assert list(request.stopping.stop_strings) == ["\n", "END"]
    assert list(request.stopping.stop_token_ids) == [3]
    assert request.options.HasField("top_logprobs")
    assert request.options.include_token_ids
    assert request.request_id == "mine"
    assert request.routing_key == "customer-7"
    assert list(request.token_ids.ids) == [1, 2]
    assert request.WhichOneof("input") == "token_ids"


def test_one_stop_string_needs_no_list() -> None:
    assert list(generate_request("x", None, None, {"stop": "END"}).stopping.stop_strings) == ["END"]


def test_messages_keep_their_order_and_roles() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]

    request = generate_request(None, turns, None, {})

    assert [(turn.role, turn.content) for turn in request.chat.messages] == [("system", "s"), ("user", "u")]
    assert count_request(None, turns).chat == request.chat


@pytest.mark.parametrize(("prompt", "token_ids"), [(None, None), ("x", [1])])
def test_exactly_one_input_is_asked_for(prompt: str | None, token_ids: list[int] | None) -> None:
    with pytest.raises(TypeError, match="exactly one of prompt, messages, token_ids"):
        generate_request(prompt, None, token_ids, {})


def test_a_misspelt_option_is_refused_by_name() -> None:
    options: Any = {"temprature": 0.0}

    with pytest.raises(TypeError, match="temprature"):
        generate_request("x", None, None, options)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("seed", {"seed": 2**64}),
        ("top_k", {"top_k": 2**32}),
        ("max_tokens", {"max_tokens": -1}),
        ("logit_bias", {"logit_bias": {-1: 1.0}}),
        ("stop_token_ids", {"stop_token_ids": [2**32]}),
    ],
)
def test_a_number_that_the_wire_cannot_carry_is_refused_by_name(field: str, options: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} must be a whole number"):
        generate_request("x", None, None, options)
