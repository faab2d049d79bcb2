"""Whatever bytes come, the answer is a documented status without a word of ours, and the server lives on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.v1 import ops_pb2
from loraplex_client import InvalidRequestError, LoraplexClient
from loraplex_client.errors import api_error
from tests.integration.live_server import LiveServer, await_idle
from tests.integration.raw_calls import failure_of
from tests.integration.streams import GREEDY, PROMPT
from tests.integration.wild_messages import METHODS, Method, wild_messages

FORBIDDEN_CODES = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
FORBIDDEN_WORDS = ("Traceback", "Exception", "Error'", "object at 0x", "google.protobuf", ".py")
FROM_GRPC_ITSELF = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
CALL_TIMEOUT_S = 5.0
WATCH_TIMEOUT_S = 0.2  # of a call that would go on for ever

ANY_BYTES = settings(max_examples=50, deadline=None)


@pytest.fixture(scope="module")
def bytes_channel(server: LiveServer) -> Iterator[grpc.Channel]:
    """One connection for all examples; at the end the server answers, with the engine it had."""
    engine = server.engine()
    with server.client() as client:
        before = client.generate(PROMPT, adapter="red", **GREEDY)
        with grpc.insecure_channel(server.target, [("grpc.enable_retries", 0)]) as channel:
            yield channel
        await_idle(client)
        assert client.generate(PROMPT, adapter="red", **GREEDY).token_ids == before.token_ids
    assert server.engine().pid == engine.pid


def call(channel: grpc.Channel, method: Method, messages: list[bytes]) -> None:
    """Send the messages as they are. An error must be one of the documented ones, and say nothing of the inside."""
    begin: Any = getattr(channel, method.kind)(method.path)  # no serializers: bytes in, bytes out
    request = iter(messages) if method.descriptor.client_streaming else messages[0]
    with documented(method):
        is_endless = method.path.endswith("/WatchAdapters")
        result = begin(request, timeout=WATCH_TIMEOUT_S if is_endless else CALL_TIMEOUT_S)
        if method.descriptor.server_streaming:
            for _ in result:
                if not method.path.startswith("/loraplex."):  # Watch goes on for ever
                    result.cancel()
                    break


@contextmanager
def documented(method: Method) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        failure = api_error(error)
        assert failure.code not in FORBIDDEN_CODES, f"{failure.code.name}: {failure.message}"
        assert not [word for word in FORBIDDEN_WORDS if word in failure.message]
        if method.path.startswith("/loraplex.") and failure.code not in FROM_GRPC_ITSELF:
            assert failure.reason
            assert failure.request_id


def never_drains(method: Method, data: bytes) -> bool:
    """A well-formed DrainRequest would be obeyed."""
    if not method.path.endswith("/Drain"):
        return True
    try:
        request = ops_pb2.DrainRequest.FromString(data)
    except Exception:
        return True
    return request.HasField("grace_seconds") and not 0 <= request.grace_seconds <= 3600


@pytest.mark.parametrize("method", METHODS, ids=str)
@ANY_BYTES
@given(data=st.data())
def test_random_bytes_are_answered_with_a_documented_status(
    bytes_channel: grpc.Channel, method: Method, data: st.DataObject
) -> None:
    size = 3 if method.descriptor.client_streaming else 1
    messages = data.draw(st.lists(st.binary(max_size=60), min_size=1, max_size=size))
    if all(never_drains(method, message) for message in messages):
        call(bytes_channel, method, messages)


@pytest.mark.parametrize("method", METHODS, ids=str)
@ANY_BYTES
@given(data=st.data())
def test_senseless_messages_are_answered_with_a_documented_status(
    bytes_channel: grpc.Channel, method: Method, data: st.DataObject
) -> None:
    wild = wild_messages(method.descriptor.input_type)
    size = 3 if method.descriptor.client_streaming else 1
    messages = [
        message.SerializeToString() for message in data.draw(st.lists(wild, min_size=1, max_size=size))
    ]
    if all(never_drains(method, message) for message in messages):
        call(bytes_channel, method, messages)


@pytest.mark.parametrize("method", METHODS, ids=str)
@ANY_BYTES
@given(data=st.data())
def test_damaged_messages_are_answered_with_a_documented_status(
    bytes_channel: grpc.Channel, method: Method, data: st.DataObject
) -> None:
    raw = bytearray(data.draw(wild_messages(method.descriptor.input_type)).SerializeToString()[:2000])
    for bit in data.draw(st.lists(st.integers(0, max(0, len(raw) * 8 - 1)), max_size=3)) if raw else ():
        raw[bit // 8] ^= 1 << bit % 8
    if never_drains(method, bytes(raw)):
        call(bytes_channel, method, [bytes(raw)])


@pytest.mark.parametrize("method", [m for m in METHODS if m.path.startswith("/loraplex.")], ids=str)
def test_bytes_that_are_no_message_are_named_so(bytes_channel: grpc.Channel, method: Method) -> None:
    begin: Any = getattr(bytes_channel, method.kind)(method.path)
    request: Any = b"\xff\xff\xff"

    def send() -> None:
        result = begin(iter([request]) if method.descriptor.client_streaming else request)
        list(result)

    failure = failure_of(send)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "MALFORMED_MESSAGE"


def test_text_that_is_not_utf_8_is_malformed(bytes_channel: grpc.Channel, client: LoraplexClient) -> None:
    prompt_of_bytes = b"\x12\x02\xff\xfe"  # GenerateRequest.prompt

    generate: Any = bytes_channel.unary_unary("/loraplex.v1.InferenceService/Generate")

    assert failure_of(lambda: generate(prompt_of_bytes)).reason == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("name", ["A" * 3000, "A" * 100_000, "\U0001f642" * 30_000], ids=len)
def test_an_error_about_an_endless_name_still_arrives_whole(client: LoraplexClient, name: str) -> None:
    for use in (client.adapters.get, client.adapters.delete, lambda name: client.generate("x", adapter=name)):
        with pytest.raises(InvalidRequestError) as caught:
            use(name)
        assert caught.value.violations[0].field in ("name", "adapter")
        assert len(caught.value.message.encode()) <= 1024


def test_an_error_about_endlessly_many_fields_still_arrives_and_names_the_first(
    client: LoraplexClient,
) -> None:
    for request, field in (
        ({"messages": [{"role": "x", "content": "y"}] * 3000}, "chat.messages[0].role"),
        ({"prompt": "x", "logit_bias": dict.fromkeys(range(5000), math.inf)}, "sampling.logit_bias"),
        ({"messages": [{"role": "é" * 5000, "content": "y"}]}, "chat.messages[0].role"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            client.generate(**request)
        assert caught.value.violations[0].field == field
