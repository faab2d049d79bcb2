"""Typed records that cross the process boundary between front end and engine, encoded by msgspec.

The front end sends commands; the engine answers with one `StepOutputs` per step. Nothing else is shared.
All times are seconds of CLOCK_MONOTONIC, which both processes read alike on one host.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

Tier = Literal["disk", "host", "slot"]
"""The nearest place that has an adapter's weights."""

MAX_TOP_LOGPROBS = 20
"""The most that a request may want."""


class FinishReason(enum.StrEnum):
    """Why a sequence ended; every admitted sequence gets exactly one."""

    STOP = "stop"  # end-of-sequence or stop token; the front end reports a stop string as STOP too
    LENGTH = "length"  # max_tokens or the end of the context
    ABORT = "abort"  # the front end asked for it
    ERROR = "error"  # see TokenOutput.error_reason


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens of one sequence are chosen and when it ends. Validated by the front end."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0  # in [0, 2**64); drawn by the front end when the caller gave none
    max_tokens: int = 256
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()  # besides the model's end-of-sequence ids
    ignore_eos: bool = False
    top_logprobs: int | None = None  # None: no log-probabilities; 0: the chosen token's alone

    @property
    def depends_on_history(self) -> bool:
        """Whether a token cannot be chosen before the one ahead of it is known."""
        return bool(self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty)


class AddSequence(msgspec.Struct, frozen=True, tag=True):
    """Admit a sequence. `sequence_id` is drawn by the front end and never reused."""

    sequence_id: int
    prompt_token_ids: list[int]
    adapter_digest: str | None  # None: the base model
    cache_salt: bytes  # part of the prefix-cache key besides the digest; sequences share blocks only if equal
    sampling: SamplingParams
    arrival_s: float
    is_background: bool = (
        False  # begins beside others only once in many steps, so that their steps stay short
    )


class AbortSequences(msgspec.Struct, frozen=True, tag=True):
    """End these sequences now and free what they hold. Unknown ids are ignored."""

    sequence_ids: list[int]


class ForgetAdapter(msgspec.Struct, frozen=True, tag=True):
    """No new sequence will name this digest; free its slot and host copy when idle."""

    digest: str


class PinAdapters(msgspec.Struct, frozen=True, tag=True):
    """From now on these, and no others, are loaded and never evicted."""

    digests: list[str]


class WarmAdapter(msgspec.Struct, frozen=True, tag=True):
    """Load this adapter into a slot, when one can be had, though no sequence waits for it."""

    digest: str


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave the loop and exit 0."""


Command = AddSequence | AbortSequences | ForgetAdapter | PinAdapters | WarmAdapter | Shutdown


class EngineReady(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first message of an engine: what it loaded and what it can hold."""

    base_fingerprint: str
    architecture: str
    quantization: str
    quantization_reason: str  # for the log
    device: str
    weight_bytes: int
    parameter_count: int
    max_context_tokens: int
    num_blocks: int
    block_size: int
    adapter_slots: int
    adapter_arena_elements: int  # weights that all active adapters may have together
    adapter_arena_bytes: int
    adapter_element_bytes: int  # of one weight in the arena
    adapter_layout: str  # of adapter images, see `loraplex_server.adapter_image`
    host_cache_bytes: int
    max_running: int
    load_seconds: float
    eos_token_ids: tuple[int, ...]
    memory_plan: str = ""  # of a GPU, for the log


class EngineProgress(msgspec.Struct, frozen=True, tag=True):
    """How far an engine that starts has come.

    Stages are "compile", in kernels of a GPU, "load", in layers, and "capture", in graphs.
    """

    stage: str
    done: int
    total: int


class EngineFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine could not start and exits; `message` is fit for an operator."""

    message: str
    reason: str


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One position: the chosen token and the `top` most likely (id, logprob), best first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class SequenceTimings(msgspec.Struct, frozen=True, array_like=True):
    """Seconds, as documented at loraplex.v1.Timings."""

    queue_s: float
    adapter_load_s: float
    prefill_s: float
    decode_s: float


class TokenOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one step gave one sequence."""

    sequence_id: int
    token_ids: list[int]  # new tokens, usually one; empty for an ABORT or ERROR
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None  # one per new token, if asked for
    cached_prompt_tokens: int = 0  # set with the first token
    timings: SequenceTimings | None = None  # set with the first token and with finish_reason
    error_reason: str | None = None  # reason code of a LoraplexError, with finish_reason ERROR
    error_message: str | None = None


class AdapterMove(msgspec.Struct, frozen=True, array_like=True):
    """Where an adapter is now, and what it took to bring it there since the last message."""

    digest: str
    tier: Tier
    read_seconds: float = 0.0  # disk → host
    copy_seconds: float = 0.0  # host → slot: from a slot found and all read until sequences may use it


class AdapterLoadFailure(msgspec.Struct, frozen=True, array_like=True):
    """An adapter that was to be pinned or warmed cannot be; reason and message are a LoraplexError's."""

    digest: str
    reason: str
    message: str


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """State after a step (gauges) and what happened in it (counts of this step alone)."""

    num_running: int = 0
    num_waiting: int = 0
    kv_blocks_used: int = 0  # held by sequences
    kv_blocks_cached: int = 0  # idle, kept for prefix hits
    adapter_slots_used: int = 0  # with an adapter in them or being copied there
    adapter_slots_pinned: int = 0  # of these, by a pinned adapter
    adapter_leases: int = 0  # held by running sequences, each on its adapter in its slot
    adapters_loading: int = 0  # wanted, and not in their slot yet
    arena_bytes_used: int = 0
    host_cache_bytes_used: int = 0
    step_seconds: float = 0.0  # of the device
    device_idle_seconds: float | None = None  # what it waited before that step though there was work
    batch_sequences: int = 0
    batch_adapters: int = 0  # distinct adapters in the batch, the base not counted
    prefill_tokens: int = 0
    decode_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    residency: list[AdapterMove] = []  # adapters whose place has changed since the last message
    load_failures: list[AdapterLoadFailure] = []
    adapter_load_seconds: list[float] = []  # one per read finished since the last message
    adapter_copy_seconds: list[float] = []  # one per adapter that came into a slot since then
    adapter_evictions: int = 0  # out of slots
    compacted_bytes: int = 0  # moved within the arena


class StepOutputs(msgspec.Struct, frozen=True, tag=True):
    """The engine's one message per step."""

    outputs: list[TokenOutput]
    stats: EngineStats


EngineMessage = EngineProgress | EngineReady | EngineFailed | StepOutputs
