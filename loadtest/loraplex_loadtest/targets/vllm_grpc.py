"""`vllm.Inference` over gRPC: text in, text out, an adapter by name."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from loraplex_loadtest.errors import TargetUnreadyError
from loraplex_loadtest.targets.loraplex_grpc import await_channel, open_channel
from loraplex_loadtest.targets.target import Question, Sink, TargetAddress
from loraplex_loadtest.targets.vllm_messages import GENERATE_STREAM, message_classes


class VllmConnection:
    """GenerateStream of one channel. A conversation is sent as its text: the interface has no chat."""

    def __init__(self, address: TargetAddress) -> None:
        self._messages = message_classes()
        self._channel = open_channel(address)
        self._method: Any = self._channel.unary_stream(
            GENERATE_STREAM,
            request_serializer=self._messages["GenerateRequest"].SerializeToString,
            response_deserializer=self._messages["GenerateResponse"].FromString,
        )
        self._model = address.model
        self._metadata = tuple(address.headers.items())

    async def open(self) -> None:
        await await_channel(self._channel)

    def prepare(self, question: Question) -> Any:
        sampling = question.sampling
        request = self._messages["GenerateRequest"](
            request_id=question.request_id,
            model=self._model,
            text=question.text,
            temperature=sampling.temperature,
            lora_name=question.adapter,
        )
        request.stopping.max_new_tokens = question.max_tokens
        request.stopping.ignore_eos = question.ignore_eos
        for name in ("top_k", "top_p", "min_p", "seed"):
            if (value := getattr(sampling, name)) is not None:
                setattr(request.sampling, name, value)
        return request

    async def ask(self, prepared: Any, deadline_s: float, sink: Sink) -> None:
        call = self._method(prepared, timeout=deadline_s, metadata=self._metadata)
        num_prompt = 0
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                if message.HasField("prompt_info"):
                    num_prompt = message.prompt_info.num_prompt_tokens
                if message.outputs.num_tokens and not sink.tokens(message.outputs.num_tokens):
                    return
                await sink.pause()
                if message.outputs.HasField("finish_info"):
                    sink.counted(num_prompt, message.outputs.finish_info.num_output_tokens)
        except grpc.RpcError as error:
            failed: Any = error
            sink.failed(failed.code().name, "")
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close(None)


class VllmInspector:
    """Knows whether the server can be reached, and nothing else: names of adapters come from the scenario."""

    def __init__(self, address: TargetAddress) -> None:
        self._address = address
        self._channel = open_channel(address)

    async def describe(self) -> dict[str, Any]:
        if not await await_channel(self._channel):
            raise TargetUnreadyError(f"no server answers at {self._address.address}")
        return {}

    async def adapters(self) -> list[str]:
        return []

    async def overhead_tokens(self, is_chat: bool, text: str, num_tokens: int) -> int:
        return 0

    async def close(self) -> None:
        await self._channel.close(None)
