"""What grpc itself meets: unknown methods, oversized messages and metadata, and bytes that are no HTTP/2."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from loraplex.v1 import inference_pb2, inference_pb2_grpc
from loraplex_client import LoraplexClient
from tests.integration.live_server import LiveServer, await_idle
from tests.integration.raw_calls import failure_of, raw_channel
from tests.integration.streams import ENDLESS, GREEDY, PROMPT

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(autouse=True)
def serves_afterwards(server: LiveServer, client: LoraplexClient) -> Iterator[None]:
    """A stream that ran all the while is untouched, and a new request is answered."""
    with client.stream(PROMPT, adapter="red", **ENDLESS) as bystander:
        next(bystander)
        yield
        next(bystander)
    assert client.generate(PROMPT, adapter="green", **GREEDY).usage.completion_tokens == 24
    await_idle(client)


@pytest.mark.parametrize(
    "path",
    [
        "/loraplex.v1.InferenceService/Nothing",
        "/loraplex.v2.InferenceService/Generate",
        "/x",
        "/loraplex.v1.InferenceService/generate",
    ],
)
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
def test_an_unknown_method_is_unimplemented(server: LiveServer, path: str, kind: str) -> None:
    with raw_channel(server) as channel:
        begin: Any = getattr(channel, kind)(path)
        failure = failure_of(lambda: list(begin(iter([b""]) if kind.startswith("stream") else b"")))

    assert failure.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("num_bytes", [8 * 2**20 + 1, 20 * 2**20])
def test_a_message_above_8_mib_is_resource_exhausted(server: LiveServer, num_bytes: int) -> None:
    with raw_channel(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        failure = failure_of(lambda: stub.Generate(inference_pb2.GenerateRequest(prompt="x" * num_bytes)))

    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_prompt_of_nearly_8_mib_is_out_of_range_and_blocks_nobody(
    server: LiveServer, client: LoraplexClient
) -> None:
    with raw_channel(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate.future(inference_pb2.GenerateRequest(prompt="word " * 1_500_000))
        # Tokenizing it takes far longer than this answer, which comes first.
        assert client.generate(PROMPT, max_tokens=1).usage.completion_tokens == 1
        assert not call.done()

        assert failure_of(call.result).code is grpc.StatusCode.OUT_OF_RANGE


def test_metadata_above_16_kib_is_resource_exhausted(server: LiveServer) -> None:
    with raw_channel(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        failure = failure_of(
            lambda: stub.Generate(
                inference_pb2.GenerateRequest(prompt=PROMPT), metadata=(("x-padding", "x" * 20_000),)
            )
        )

    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /loraplex.v1.InferenceService/Generate HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,  # a TLS hello
        b"\0" * 10_000,
        random.Random(0).randbytes(10_000),
        HTTP2_PREFACE + random.Random(1).randbytes(5_000),
        HTTP2_PREFACE + b"\xff\xff\xff\x01\x05\x7f\xff\xff\xff",  # a HEADERS frame of 16 MiB
        HTTP2_PREFACE[:9],
        b"",
    ],
    ids=lambda garbage: repr(garbage[:16]),
)
def test_bytes_that_are_no_grpc_harm_nobody(server: LiveServer, garbage: bytes) -> None:
    host, port = server.target.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.settimeout(0.5)
        try:
            connection.sendall(garbage)
            while connection.recv(4096):
                pass
        except (TimeoutError, ConnectionError):
            pass  # it may answer, wait or hang up


def test_connections_that_say_nothing_take_nobodys_place(server: LiveServer, client: LoraplexClient) -> None:
    host, port = server.target.split(":")
    idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(100)]
    try:
        assert client.generate(PROMPT, max_tokens=1).usage.completion_tokens == 1
    finally:
        for connection in idle:
            connection.close()
