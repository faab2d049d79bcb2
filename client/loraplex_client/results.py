"""What calls return: plain frozen records, no protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # end-of-sequence token, stop id or stop string
    LENGTH = "length"  # max_tokens or the end of the context
    UNKNOWN = "unknown"  # a newer server's reason


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted."""

    prompt_tokens: int
    cached_prompt_tokens: int  # of prompt_tokens, found in the prefix cache
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the server's time went, in seconds."""

    queue_seconds: float
    adapter_load_seconds: float  # part of queue_seconds
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """An alternative at one position."""

    token_id: int
    text: str
    logprob: float  # natural logarithm


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """Log-probabilities of one generated token."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]  # best first


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a stream: the request was admitted and its first step has run."""

    adapter_digest: str  # SHA-256, hex; empty for the base model
    base_fingerprint: str
    request_id: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the completion."""

    text: str  # to append; may be empty
    token_count: int
    token_ids: tuple[int, ...] = ()  # if asked for
    logprobs: tuple[PositionLogprobs, ...] = ()  # one per token, if asked for


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of a stream."""

    finish_reason: FinishReason
    usage: Usage
    timings: Timings


StreamEvent = Started | Delta | Finished


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    adapter_digest: str  # SHA-256, hex; empty for the base model
    base_fingerprint: str
    request_id: str
    token_ids: tuple[int, ...] = ()  # if asked for
    logprobs: tuple[PositionLogprobs, ...] = ()  # one per token, if asked for


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The resident base model."""

    id: str
    architecture: str
    quantization: str
    device: str
    fingerprint: str
    weight_bytes: int
    parameter_count: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for."""

    max_context_tokens: int
    max_output_tokens: int
    max_running: int
    max_waiting: int
    adapter_slots: int
    max_lora_rank: int
    max_adapter_bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """The present load."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    adapter_slots_used: int
    adapters_registered: int
    resident_bytes: int  # of server and engine together


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The server."""

    version: str
    base_model: BaseModel
    limits: Limits
    load: Load
    uptime_seconds: float
