"""Friendly keywords -> protobuf requests. What the caller leaves out stays unset, so the server's defaults hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from loraplex.v1 import inference_pb2

Messages = Sequence[Mapping[str, str]]
"""Turns of a conversation: {"role": "system" | "user" | "assistant", "content": text}."""


class GenerateOptions(TypedDict, total=False):
    """Keywords of `generate` and `stream` besides the input. docs: proto/loraplex/v1/inference.proto."""

    adapter: str  # NAME, NAME@ALIAS or NAME@DIGEST; left out or empty: the base model
    routing_key: str  # requests of equal keys get the same version of a name whose traffic is split
    max_tokens: int  # [1, the server's max_output_tokens]; server's default 256
    min_tokens: int
    temperature: float  # [0, 2]; 0 is greedy; server's default 1
    top_k: int
    top_p: float  # (0, 1]
    min_p: float  # [0, 1]
    repetition_penalty: float  # (0, 2]
    presence_penalty: float  # [-2, 2]
    frequency_penalty: float  # [-2, 2]
    logit_bias: Mapping[int, float]
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int  # alternatives per token, [0, 20]
    include_token_ids: bool
    request_id: str


_SAMPLING_SCALARS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
_STOPPING_SCALARS = ("max_tokens", "min_tokens", "ignore_eos")

MAX_COUNT = 2**32 - 1
"""Of a count or a token id on the wire. What the server takes is less; it says so itself."""

MAX_SEED = 2**64 - 1
_LARGEST = {
    "max_tokens": MAX_COUNT,
    "min_tokens": MAX_COUNT,
    "top_k": MAX_COUNT,
    "logprobs": MAX_COUNT,
    "seed": MAX_SEED,
}


def generate_request(
    prompt: str | None,
    messages: Messages | None,
    token_ids: Sequence[int] | None,
    options: GenerateOptions,
) -> inference_pb2.GenerateRequest:
    """Raises TypeError unless exactly one of prompt, messages, token_ids is given and all options are known.

    Raises ValueError for a number that the wire cannot carry.
    """
    _check_one_input(prompt=prompt, messages=messages, token_ids=token_ids)
    unknown = sorted(set(options) - GenerateOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown options {', '.join(unknown)}")
    _check_numbers(token_ids or (), options)
    stop = options.get("stop") or ()
    return inference_pb2.GenerateRequest(
        adapter=options.get("adapter") or "",
        prompt=prompt,  # type: ignore[arg-type]  # None leaves it unset; the stubs do not know
        chat=None if messages is None else _chat(messages),
        token_ids=None if token_ids is None else inference_pb2.TokenIds(ids=token_ids),
        sampling=inference_pb2.SamplingParams(
            logit_bias=options.get("logit_bias"),
            **{name: options.get(name) for name in _SAMPLING_SCALARS},  # type: ignore[arg-type]
        ),
        stopping=inference_pb2.StoppingCriteria(
            stop_strings=[stop] if isinstance(stop, str) else stop,
            stop_token_ids=options.get("stop_token_ids"),
            **{name: options.get(name) for name in _STOPPING_SCALARS},  # type: ignore[arg-type]
        ),
        options=inference_pb2.ResponseOptions(
            top_logprobs=options.get("logprobs"), include_token_ids=options.get("include_token_ids", False)
        ),
        request_id=options.get("request_id") or "",
        routing_key=options.get("routing_key") or "",
    )


def count_request(prompt: str | None, messages: Messages | None) -> inference_pb2.CountTokensRequest:
    """Raises TypeError unless exactly one of prompt and messages is given."""
    _check_one_input(prompt=prompt, messages=messages)
    return inference_pb2.CountTokensRequest(
        prompt=prompt,  # type: ignore[arg-type]  # None leaves it unset
        chat=None if messages is None else _chat(messages),
    )


def _chat(messages: Messages) -> inference_pb2.ChatMessages:
    return inference_pb2.ChatMessages(
        messages=[inference_pb2.ChatMessage(role=turn["role"], content=turn["content"]) for turn in messages]
    )


def _check_numbers(token_ids: Sequence[int], options: GenerateOptions) -> None:
    """protobuf's own refusal names no field."""
    for name, largest in _LARGEST.items():
        value = options.get(name)
        if isinstance(value, int):
            _check_number(name, value, largest)
    for name, ids in (
        ("token_ids", token_ids),
        ("stop_token_ids", options.get("stop_token_ids") or ()),
        ("logit_bias", options.get("logit_bias") or ()),
    ):
        for token_id in ids:
            _check_number(name, token_id, MAX_COUNT)


def _check_number(name: str, value: int, largest: int) -> None:
    if not 0 <= value <= largest:
        raise ValueError(f"{name} must be a whole number from 0 to {largest}, not {value}")


def _check_one_input(**inputs: object) -> None:
    given = [name for name, value in inputs.items() if value is not None]
    if len(given) != 1:
        raise TypeError(f"give exactly one of {', '.join(inputs)}; got {', '.join(given) or 'none'}")
