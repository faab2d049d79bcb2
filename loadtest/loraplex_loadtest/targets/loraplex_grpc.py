"""Loraplex's own gRPC. Messages are read as they come, with no layer of the client library before the clock."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict

from loraplex.v1 import inference_pb2, inference_pb2_grpc, ops_pb2, ops_pb2_grpc
from loraplex_client import AsyncLoraplexClient, LoraplexApiError
from loraplex_client.errors import api_error
from loraplex_loadtest.errors import TargetUnreadyError
from loraplex_loadtest.targets.target import Question, Sink, TargetAddress

_CONNECT_TIMEOUT_S = 5.0
_serial = count()


def open_channel(address: TargetAddress) -> grpc.aio.Channel:
    """A connection of its own: channels with equal arguments would share one."""
    options: list[tuple[str, Any]] = [
        ("grpc.use_local_subchannel_pool", 1),
        ("loraplex.loadtest.connection", next(_serial)),
        ("grpc.enable_retries", 0),  # gRPC does not say how often it tried; see running/retries.py
        ("grpc.max_receive_message_length", 8 * 2**20),
    ]
    return grpc.aio.insecure_channel(address.address, options)


async def await_channel(channel: grpc.aio.Channel) -> bool:
    """Whether it is connected within a few seconds."""
    try:
        await asyncio.wait_for(channel.channel_ready(), _CONNECT_TIMEOUT_S)
    except TimeoutError:
        return False
    return True


class LoraplexConnection:
    """StreamGenerate of one channel."""

    def __init__(self, address: TargetAddress) -> None:
        self._channel = open_channel(address)
        self._method: Any = inference_pb2_grpc.InferenceServiceStub(self._channel).StreamGenerate
        self._metadata = tuple(address.headers.items())

    async def open(self) -> None:
        await await_channel(self._channel)

    def prepare(self, question: Question) -> inference_pb2.StreamGenerateRequest:
        sampling = question.sampling
        request = inference_pb2.GenerateRequest(
            adapter=question.adapter,
            sampling=inference_pb2.SamplingParams(**sampling.model_dump(exclude_none=True)),
            stopping=inference_pb2.StoppingCriteria(
                max_tokens=question.max_tokens, ignore_eos=question.ignore_eos
            ),
            request_id=question.request_id,
        )
        if question.is_chat:
            request.chat.messages.add(role="user", content=question.text)
        else:
            request.prompt = question.text
        return inference_pb2.StreamGenerateRequest(request=request)

    async def ask(self, prepared: Any, deadline_s: float, sink: Sink) -> None:
        call = self._method(prepared, timeout=deadline_s, metadata=self._metadata)
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                if message.HasField("delta"):
                    if not sink.tokens(message.delta.token_count):
                        return
                    await sink.pause()
                elif message.HasField("started"):
                    sink.answered_by(message.started.adapter_digest)
                elif message.HasField("finished"):
                    usage, timings = message.finished.usage, message.finished.timings
                    sink.counted(usage.prompt_tokens, usage.completion_tokens)
                    sink.server_times(timings.queue_seconds, timings.adapter_load_seconds)
        except grpc.RpcError as error:
            failure = api_error(error)
            sink.failed(failure.code.name, failure.reason, failure.retry_after_s)
        finally:
            call.cancel()  # nothing where it is over

    async def close(self) -> None:
        await self._channel.close(None)


class LoraplexInspector:
    """OpsService, the adapters' list, and CountTokens."""

    def __init__(self, address: TargetAddress) -> None:
        self._address = address
        self._client = AsyncLoraplexClient(address.address, timeout_s=30.0)

    async def describe(self) -> dict[str, Any]:
        try:
            await self._client.wait_until_ready(10.0)
        except LoraplexApiError as error:
            raise TargetUnreadyError(
                f"no server answers at {self._address.address}: {error.message}"
            ) from None
        async with open_channel(self._address) as channel:
            response = await ops_pb2_grpc.OpsServiceStub(channel).GetServerInfo(
                ops_pb2.GetServerInfoRequest()
            )
        return MessageToDict(response, preserving_proto_field_name=True)

    async def adapters(self) -> list[str]:
        return [adapter.name async for adapter in self._client.adapters.list()]

    async def overhead_tokens(self, is_chat: bool, text: str, num_tokens: int) -> int:
        counted = (
            await self._client.count_tokens(messages=[{"role": "user", "content": text}])
            if is_chat
            else await self._client.count_tokens(text)
        )
        return max(0, counted - num_tokens)

    async def close(self) -> None:
        await self._client.close()
