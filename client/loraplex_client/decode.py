"""Protobuf messages -> the records of `results`. Those of AdapterService: `adapter_decode`."""

from __future__ import annotations

from collections.abc import Iterable

from loraplex.v1 import inference_pb2, ops_pb2
from loraplex_client.results import (
    BaseModel,
    Completion,
    Delta,
    Finished,
    FinishReason,
    Limits,
    Load,
    PositionLogprobs,
    ServerInfo,
    Started,
    StreamEvent,
    Timings,
    TokenLogprob,
    Usage,
)

_FINISH_REASONS = {
    inference_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    inference_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}


def completion(message: inference_pb2.GenerateResponse) -> Completion:
    return Completion(
        text=message.text,
        finish_reason=_FINISH_REASONS.get(message.finish_reason, FinishReason.UNKNOWN),
        usage=_usage(message.usage),
        timings=_timings(message.timings),
        adapter_digest=message.adapter_digest,
        base_fingerprint=message.base_fingerprint,
        request_id=message.request_id,
        token_ids=tuple(message.token_ids),
        logprobs=_positions(message.logprobs),
    )


def stream_event(message: inference_pb2.StreamGenerateResponse) -> StreamEvent | None:
    """None for an event that this client does not know yet."""
    match message.WhichOneof("event"):
        case "started":
            started = message.started
            return Started(
                started.adapter_digest, started.base_fingerprint, started.request_id, started.prompt_tokens
            )
        case "delta":
            delta = message.delta
            return Delta(delta.text, delta.token_count, tuple(delta.token_ids), _positions(delta.logprobs))
        case "finished":
            finished = message.finished
            reason = _FINISH_REASONS.get(finished.finish_reason, FinishReason.UNKNOWN)
            return Finished(reason, _usage(finished.usage), _timings(finished.timings))
        case _:
            return None


def server_info(message: ops_pb2.GetServerInfoResponse) -> ServerInfo:
    base, limits, load = message.base_model, message.limits, message.load
    return ServerInfo(
        version=message.version,
        base_model=BaseModel(
            id=base.id,
            architecture=base.architecture,
            quantization=base.quantization,
            device=base.device,
            fingerprint=base.fingerprint,
            weight_bytes=base.weight_bytes,
            parameter_count=base.parameter_count,
        ),
        limits=Limits(
            max_context_tokens=limits.max_context_tokens,
            max_output_tokens=limits.max_output_tokens,
            max_running=limits.max_running,
            max_waiting=limits.max_waiting,
            adapter_slots=limits.adapter_slots,
            max_lora_rank=limits.max_lora_rank,
            max_adapter_bytes=limits.max_adapter_bytes,
        ),
        load=Load(
            running=load.running,
            waiting=load.waiting,
            kv_blocks_used=load.kv_blocks_used,
            kv_blocks_total=load.kv_blocks_total,
            adapter_slots_used=load.adapter_slots_used,
            adapters_registered=load.adapters_registered,
            resident_bytes=load.resident_bytes,
        ),
        uptime_seconds=message.uptime_seconds,
    )


def _usage(message: inference_pb2.Usage) -> Usage:
    return Usage(message.prompt_tokens, message.cached_prompt_tokens, message.completion_tokens)


def _timings(message: inference_pb2.Timings) -> Timings:
    return Timings(
        message.queue_seconds, message.adapter_load_seconds, message.prefill_seconds, message.decode_seconds
    )


def _positions(messages: Iterable[inference_pb2.PositionLogprobs]) -> tuple[PositionLogprobs, ...]:
    return tuple(
        PositionLogprobs(_logprob(message.chosen), tuple(_logprob(entry) for entry in message.top))
        for message in messages
    )


def _logprob(message: inference_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token_id, message.text, message.logprob)
