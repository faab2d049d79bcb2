"""InferenceService: requests in, completions out."""

from __future__ import annotations

from contextlib import aclosing

from loraplex.v1 import inference_pb2, inference_pb2_grpc
from loraplex_server.generation import (
    Finished,
    GenerationRequest,
    Started,
    TextDelta,
)
from loraplex_server.metrics import Metrics
from loraplex_server.rpc import convert
from loraplex_server.rpc.grpc_types import Context
from loraplex_server.rpc.interceptors import request_id_var
from loraplex_server.rpc.observation import Observation
from loraplex_server.rpc.serving import Serving
from loraplex_server.rpc.stall_guard import StallGuard


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Converts, runs, converts back; all decisions are elsewhere."""

    def __init__(
        self, serving: Serving, metrics: Metrics, max_output_tokens: int, write_stall_timeout_s: float
    ) -> None:
        self._serving = serving
        self._metrics = metrics
        self._max_output_tokens = max_output_tokens
        self._write_stall_timeout_s = write_stall_timeout_s

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> inference_pb2.GenerateResponse:
        parts = self._serving.parts()
        generation = self._convert(request, context)
        response = inference_pb2.GenerateResponse(
            base_fingerprint=parts.ready.base_fingerprint,
            request_id=generation.request_id or request_id_var.get(),
        )
        text: list[str] = []
        with Observation(self._metrics, _label(generation)) as observation:
            async with aclosing(parts.generation.generate(generation)) as events:
                async for event in events:
                    observation.see(event)
                    match event:
                        case Started(adapter_digest=digest):
                            response.adapter_digest = digest
                        case TextDelta() as delta:
                            text.append(delta.text)
                            if request.options.include_token_ids:
                                response.token_ids.extend(delta.token_ids)
                            response.logprobs.extend(
                                convert.position_logprobs(p, parts.tokenizer) for p in delta.logprobs
                            )
                        case Finished() as finished:
                            end = convert.finished_message(finished)
                            response.finish_reason = end.finish_reason
                            response.usage.CopyFrom(end.usage)
                            response.timings.CopyFrom(end.timings)
        response.text = "".join(text)
        return response

    async def StreamGenerate(  # type: ignore[override]  # writes to the context, to notice a client that does not read
        self, request: inference_pb2.StreamGenerateRequest, context: Context
    ) -> None:
        parts = self._serving.parts()
        generation = self._convert(request.request, context)
        include_ids = request.request.options.include_token_ids
        request_id = generation.request_id or request_id_var.get()
        observation = Observation(self._metrics, _label(generation))
        with StallGuard(self._write_stall_timeout_s) as guard, observation:
            async with aclosing(parts.generation.generate(generation)) as events:
                async for event in events:
                    observation.see(event)
                    match event:
                        case TextDelta() as delta:
                            message = inference_pb2.StreamGenerateResponse(
                                delta=convert.delta_message(
                                    delta, parts.tokenizer, include_token_ids=include_ids
                                )
                            )
                        case Started() as started:
                            message = inference_pb2.StreamGenerateResponse(
                                started=inference_pb2.Started(
                                    adapter_digest=started.adapter_digest,
                                    base_fingerprint=parts.ready.base_fingerprint,
                                    request_id=request_id,
                                    prompt_tokens=started.num_prompt_tokens,
                                )
                            )
                        case Finished() as finished:
                            message = inference_pb2.StreamGenerateResponse(
                                finished=convert.finished_message(finished)
                            )
                    await guard.write(context, message)

    async def CountTokens(
        self, request: inference_pb2.CountTokensRequest, context: Context
    ) -> inference_pb2.CountTokensResponse:
        count = await self._serving.parts().generation.count_tokens(convert.count_request(request))
        return inference_pb2.CountTokensResponse(token_count=count)

    def _convert(self, request: inference_pb2.GenerateRequest, context: Context) -> GenerationRequest:
        vocab_size = self._serving.parts().tokenizer.vocab_size
        return convert.generation_request(
            request, vocab_size, self._max_output_tokens, context.time_remaining()
        )


def _label(generation: GenerationRequest) -> str:
    """What metrics call the adapter; empty for the base model."""
    return str(generation.adapter.name) if generation.adapter is not None else ""
