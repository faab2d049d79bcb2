"""Between protobuf messages and the server's own types; every documented range is checked here, all at once."""

from __future__ import annotations

import math
import time

from loraplex.v1 import inference_pb2
from loraplex_adapters.errors import FieldViolation, InvalidRequestError
from loraplex_adapters.names import AdapterReference
from loraplex_server.engine.messages import (
    MAX_TOP_LOGPROBS,
    FinishReason,
    SamplingParams,
    SequenceTimings,
    TokenLogprob,
)
from loraplex_server.generation import DEFAULT_MAX_TOKENS, Finished, GenerationRequest, TextDelta
from loraplex_server.tokenizer import BaseTokenizer, ChatMessage, Prompt

MAX_LOGIT_BIAS_ENTRIES = 300
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 256
MAX_STOP_TOKEN_IDS = 64
MAX_REQUEST_ID_BYTES = 128
MAX_ROUTING_KEY_CHARACTERS = 256
_MAX_LISTED_PER_FIELD = 3  # of entries that are wrong in one field; more would not fit in a status
_ROLES = ("system", "user", "assistant")

_FINISH_REASONS = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}


class _Checks:
    """Collects what is wrong with a request."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []

    def require(self, holds: bool, field: str, description: str) -> None:
        if not holds:
            self.violations.append(FieldViolation(field, description))

    def require_no(self, wrong_entries: list[str], description: str) -> None:
        """None of a repeated field's entries may be wrong; they are given as fields, like "chat.messages[3].role"."""
        for field in wrong_entries[:_MAX_LISTED_PER_FIELD]:
            self.violations.append(FieldViolation(field, description))
        unlisted = len(wrong_entries) - _MAX_LISTED_PER_FIELD
        if unlisted > 0:
            field = wrong_entries[0].partition("[")[0]
            self.violations.append(FieldViolation(field, f"and {unlisted} more entries: {description}"))

    def in_range(self, value: float, field: str, low: float, high: float, *, open_low: bool = False) -> None:
        """`value` must lie in [low, high], or in (low, high]; NaN never does."""
        holds = (low < value if open_low else low <= value) and value <= high
        bracket = "(" if open_low else "["
        self.require(holds, field, f"is {value:g}; must be in {bracket}{low:g}, {high:g}]")

    def raise_if_any(self) -> None:
        if self.violations:
            raise InvalidRequestError(self.violations)


def generation_request(
    message: inference_pb2.GenerateRequest,
    vocab_size: int,
    max_output_tokens: int,
    time_remaining_s: float | None,
) -> GenerationRequest:
    """Raises InvalidRequestError listing every violation.

    time_remaining_s  until the caller's deadline; None if it set none.
    """
    checks = _Checks()
    prompt = _prompt(message, checks)
    if message.WhichOneof("input") == "token_ids":
        is_known = max(message.token_ids.ids, default=0) < vocab_size
        checks.require(is_known, "token_ids.ids", f"every id must be below {vocab_size}, the vocabulary size")
    sampling = _sampling(message, vocab_size, checks)
    stopping = message.stopping
    max_tokens = stopping.max_tokens if stopping.HasField("max_tokens") else None
    if max_tokens is not None:
        checks.in_range(max_tokens, "stopping.max_tokens", 1, max_output_tokens)
    limit = max_tokens if max_tokens is not None else min(DEFAULT_MAX_TOKENS, max_output_tokens)
    checks.require(
        stopping.min_tokens <= limit, "stopping.min_tokens", f"must be at most {limit} (max_tokens)"
    )
    _check_stop_strings(list(stopping.stop_strings), checks)
    is_printable = all(32 <= ord(character) < 127 for character in message.request_id)
    checks.require(
        is_printable and len(message.request_id) <= MAX_REQUEST_ID_BYTES,
        "request_id",
        f"must be at most {MAX_REQUEST_ID_BYTES} bytes of printable ASCII",
    )
    checks.require(
        len(message.routing_key) <= MAX_ROUTING_KEY_CHARACTERS,
        "routing_key",
        f"must be at most {MAX_ROUTING_KEY_CHARACTERS} characters",
    )
    adapter = _adapter(message.adapter, checks)
    checks.raise_if_any()
    return GenerationRequest(
        adapter=adapter,
        prompt=prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        seed=message.sampling.seed if message.sampling.HasField("seed") else None,
        stop_strings=tuple(stopping.stop_strings),
        request_id=message.request_id,
        routing_key=message.routing_key,
        deadline_s=time.monotonic() + time_remaining_s if time_remaining_s is not None else None,
    )


def count_request(message: inference_pb2.CountTokensRequest) -> Prompt:
    """What to count. Raises InvalidRequestError."""
    checks = _Checks()
    prompt = _prompt(message, checks)
    checks.raise_if_any()
    return prompt


def _adapter(text: str, checks: _Checks) -> AdapterReference | None:
    """None for the base model."""
    if not text:
        return None
    try:
        return AdapterReference.parse(text)
    except InvalidRequestError as error:
        checks.violations += error.violations
        return None


def _prompt(
    message: inference_pb2.GenerateRequest | inference_pb2.CountTokensRequest, checks: _Checks
) -> Prompt:
    match message.WhichOneof("input"):
        case "prompt":
            checks.require(bool(message.prompt), "prompt", "must not be empty")
            return message.prompt
        case "chat":
            turns = message.chat.messages
            checks.require(bool(turns), "chat.messages", "must hold at least one message")
            wrong = [f"chat.messages[{i}].role" for i, turn in enumerate(turns) if turn.role not in _ROLES]
            checks.require_no(wrong, f"must be one of {', '.join(_ROLES)}")
            return tuple(ChatMessage(turn.role, turn.content) for turn in turns)
        case "token_ids" if isinstance(message, inference_pb2.GenerateRequest):
            checks.require(bool(message.token_ids.ids), "token_ids.ids", "must not be empty")
            return tuple(message.token_ids.ids)
        case _:
            checks.require(False, "input", "set exactly one of prompt, chat, token_ids")
            return ""


def _sampling(message: inference_pb2.GenerateRequest, vocab_size: int, checks: _Checks) -> SamplingParams:
    """Unset fields take the defaults of SamplingParams, which are the documented ones."""
    values: dict[str, float | int] = {}
    ranges: dict[str, tuple[float, float, bool]] = {
        "temperature": (0, 2, False),
        "top_k": (0, vocab_size, False),
        "top_p": (0, 1, True),
        "min_p": (0, 1, False),
        "repetition_penalty": (0, 2, True),
        "presence_penalty": (-2, 2, False),
        "frequency_penalty": (-2, 2, False),
    }
    for name, (low, high, open_low) in ranges.items():
        if message.sampling.HasField(name):  # type: ignore[arg-type]
            values[name] = getattr(message.sampling, name)
            checks.in_range(values[name], f"sampling.{name}", low, high, open_low=open_low)
    bias = dict(message.sampling.logit_bias)
    checks.require(
        len(bias) <= MAX_LOGIT_BIAS_ENTRIES,
        "sampling.logit_bias",
        f"at most {MAX_LOGIT_BIAS_ENTRIES} entries",
    )
    wrong = [
        f"sampling.logit_bias[{token_id}]"
        for token_id, value in sorted(bias.items())
        if not (token_id < vocab_size and -100 <= value <= 100)
    ]
    checks.require_no(wrong, f"ids below {vocab_size}, values in [-100, 100]")
    stop_ids = tuple(message.stopping.stop_token_ids)
    checks.require(
        len(stop_ids) <= MAX_STOP_TOKEN_IDS and all(token_id < vocab_size for token_id in stop_ids),
        "stopping.stop_token_ids",
        f"at most {MAX_STOP_TOKEN_IDS} ids, each below {vocab_size}",
    )
    top_logprobs = message.options.top_logprobs if message.options.HasField("top_logprobs") else None
    if top_logprobs is not None:
        checks.in_range(top_logprobs, "options.top_logprobs", 0, MAX_TOP_LOGPROBS)
    return SamplingParams(
        **values,  # type: ignore[arg-type]
        logit_bias=bias,
        min_tokens=message.stopping.min_tokens,
        stop_token_ids=stop_ids,
        ignore_eos=message.stopping.ignore_eos,
        top_logprobs=top_logprobs,
    )


def _check_stop_strings(stops: list[str], checks: _Checks) -> None:
    checks.require(len(stops) <= MAX_STOP_STRINGS, "stopping.stop_strings", f"at most {MAX_STOP_STRINGS}")
    fits = all(1 <= len(stop.encode()) <= MAX_STOP_STRING_BYTES for stop in stops)
    checks.require(fits, "stopping.stop_strings", f"each must have 1 to {MAX_STOP_STRING_BYTES} bytes")


def delta_message(
    delta: TextDelta, tokenizer: BaseTokenizer, *, include_token_ids: bool
) -> inference_pb2.Delta:
    """A piece of the completion."""
    message = inference_pb2.Delta(text=delta.text, token_count=len(delta.token_ids))
    if include_token_ids:
        message.token_ids.extend(delta.token_ids)
    if delta.logprobs:
        message.logprobs.extend(position_logprobs(position, tokenizer) for position in delta.logprobs)
    return message


def position_logprobs(position: TokenLogprob, tokenizer: BaseTokenizer) -> inference_pb2.PositionLogprobs:
    """Log-probabilities of one generated token."""

    def entry(token_id: int, logprob: float) -> inference_pb2.TokenLogprob:
        # A banned token has probability 0; JSON and most clients cannot carry -inf.
        value = logprob if math.isfinite(logprob) else -1e9
        return inference_pb2.TokenLogprob(
            token_id=token_id, text=tokenizer.token_text(token_id), logprob=value
        )

    return inference_pb2.PositionLogprobs(
        chosen=entry(position.token_id, position.logprob),
        top=[entry(token_id, logprob) for token_id, logprob in position.top],
    )


def finished_message(finished: Finished) -> inference_pb2.Finished:
    """The end of a completion."""
    return inference_pb2.Finished(
        finish_reason=_FINISH_REASONS[finished.finish_reason],
        usage=inference_pb2.Usage(
            prompt_tokens=finished.num_prompt_tokens,
            cached_prompt_tokens=finished.num_cached_prompt_tokens,
            completion_tokens=finished.num_completion_tokens,
        ),
        timings=_timings(finished.timings),
    )


def _timings(timings: SequenceTimings) -> inference_pb2.Timings:
    return inference_pb2.Timings(
        queue_seconds=timings.queue_s,
        adapter_load_seconds=timings.adapter_load_s,
        prefill_seconds=timings.prefill_s,
        decode_seconds=timings.decode_s,
    )
