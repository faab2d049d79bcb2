"""A server that is asked for more than it can do says so at once, and serves the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from loraplex.v1 import inference_pb2, inference_pb2_grpc
from loraplex_client import AsyncCompletionStream, AsyncLoraplexClient, LoraplexClient
from tests.integration.live_server import LiveServer, await_idle, eventually
from tests.integration.raw_calls import failure_of, raw_channel
from tests.integration.streams import ENDLESS_ON_TIGHT, GREEDY, PROMPT, begin

MAX_RUNNING, MAX_WAITING = 2, 3


@asynccontextmanager
async def full_queue(server: LiveServer) -> AsyncIterator[list[AsyncCompletionStream]]:
    """All that run and all that may wait; the running ones are yielded."""
    async with AsyncLoraplexClient(server.target, timeout_s=60) as client:
        running = [await begin(client.stream(PROMPT, **ENDLESS_ON_TIGHT)) for _ in range(MAX_RUNNING)]
        waiting = [asyncio.create_task(client.generate(PROMPT, **GREEDY)) for _ in range(MAX_WAITING)]
        while (await client.server_info()).load.waiting < MAX_WAITING:  # noqa: ASYNC110  # told only when asked
            await asyncio.sleep(0.01)
        yield running
        for stream in running:
            stream.cancel()
        await asyncio.gather(*waiting)


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(
    tight_server: LiveServer, tight_client: LoraplexClient
) -> None:
    rejects = tight_server.metric("loraplex_rejects_total", reason="QUEUE_FULL")
    request = inference_pb2.GenerateRequest(prompt=PROMPT)

    async with full_queue(tight_server):
        with raw_channel(tight_server) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            started_s = time.monotonic()
            unary = failure_of(lambda: stub.Generate(request))
            stream = failure_of(
                lambda: list(stub.StreamGenerate(inference_pb2.StreamGenerateRequest(request=request)))
            )
            waited_s = time.monotonic() - started_s
        assert tight_client.is_ready()
        assert tight_client.count_tokens(PROMPT) > 0

    for failure in (unary, stream):
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert failure.reason == "QUEUE_FULL"
        assert failure.retry_after_s is not None
        assert 0.1 <= failure.retry_after_s <= 30
    assert waited_s < 30  # none of the running ones ends by itself
    assert tight_server.metric("loraplex_rejects_total", reason="QUEUE_FULL") == rejects + 2
    await_idle(tight_client)


async def test_the_client_comes_back_after_the_time_it_was_told_and_is_served(
    tight_server: LiveServer, tight_client: LoraplexClient
) -> None:
    alone = tight_client.generate(PROMPT, **GREEDY)
    rejects = tight_server.metric("loraplex_rejects_total", reason="QUEUE_FULL")

    async with AsyncLoraplexClient(tight_server.target, timeout_s=60) as client:
        async with full_queue(tight_server):
            started_s = time.monotonic()
            unary = asyncio.create_task(client.generate(PROMPT, **GREEDY))
            stream = client.stream(PROMPT, **GREEDY)
            events = asyncio.create_task(anext(stream))
            while tight_server.metric("loraplex_rejects_total", reason="QUEUE_FULL") < rejects + 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        answer = await unary
        await events
        rest = [event async for event in stream]

    assert answer.token_ids == alone.token_ids
    assert rest[-1].usage == alone.usage  # type: ignore[union-attr]
    assert time.monotonic() - started_s >= 0.1  # the least that a server tells


async def test_a_stream_that_nobody_reads_is_ended_and_its_blocks_are_freed(
    tight_server: LiveServer, tight_client: LoraplexClient
) -> None:
    # A window of a few kilobytes, so that a test need not send megabytes before the client counts as silent.
    narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    request = inference_pb2.StreamGenerateRequest(
        request=inference_pb2.GenerateRequest(
            prompt=PROMPT,
            stopping=inference_pb2.StoppingCriteria(max_tokens=8000, ignore_eos=True),
            options=inference_pb2.ResponseOptions(top_logprobs=20, include_token_ids=True),
        )
    )
    with raw_channel(tight_server, *narrow) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).StreamGenerate(request, timeout=60)
        assert next(call).HasField("started")
        eventually(lambda: tight_client.server_info().load.running == 0)

        failure = failure_of(lambda: list(call))

    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.reason == "WRITE_STALLED"
    await_idle(tight_client)
