"""Uploads that go wrong on the wire: each ends with its status, and nothing of it stays."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_client import InvalidRequestError, LoraplexClient, NotFoundError, OverloadedError
from tests.integration.conftest import NewAdapter
from tests.integration.live_server import LiveServer, eventually
from tests.integration.raw_calls import failure_of, raw_channel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Message = adapter_pb2.UploadAdapterRequest


def header(**fields: Any) -> Message:
    return Message(header=Message.Header(registration=adapter_pb2.Registration(**{"name": "sent", **fields})))


def chunk(file_name: str, offset: int, data: bytes) -> Message:
    return Message(chunk=Message.Chunk(file_name=file_name, offset=offset, data=data))


def pieces(folder: Path, size: int) -> list[Message]:
    """Both files, in turns, `size` bytes at a time."""
    files = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    return [
        chunk(name, offset, raw[offset : offset + size])
        for offset in range(0, max(map(len, files.values())), size)
        for name, raw in files.items()
        if offset < len(raw)
    ]


@pytest.fixture
def upload(tight_server: LiveServer) -> Iterator[Any]:
    """UploadAdapter itself."""
    with raw_channel(tight_server) as channel:
        yield adapter_pb2_grpc.AdapterServiceStub(channel).UploadAdapter


@pytest.fixture(autouse=True)
def nothing_stays(tight_server: LiveServer, tight_client: LoraplexClient) -> Iterator[None]:
    """No staging folder, no adapter and no package beyond those that were there."""
    stored = set(os.listdir(tight_server.data_dir / "adapters"))
    yield
    eventually(lambda: os.listdir(tight_server.data_dir / "uploads") == [])
    eventually(lambda: set(os.listdir(tight_server.data_dir / "adapters")) == stored)
    with pytest.raises(NotFoundError):
        tight_client.adapters.get("sent")


WRONG: dict[str, tuple[list[Message], str]] = {
    "nothing at all": ([], "header"),
    "an empty message": ([Message()], "header"),
    "a chunk first": ([chunk(CONFIG, 0, b"{}"), header()], "header"),
    "a second header": ([header(), header()], "chunk"),
    "an empty message later": ([header(), Message()], "chunk"),
    "another file": ([header(), chunk("adapter_model.bin", 0, b"x")], "chunk.file_name"),
    "a path": ([header(), chunk(f"../{CONFIG}", 0, b"x")], "chunk.file_name"),
    "no bytes": ([header(), chunk(CONFIG, 0, b"")], "chunk.data"),
    "too many bytes": ([header(), chunk(CONFIG, 0, b"x" * (2**20 + 1))], "chunk.data"),
    "a late beginning": ([header(), chunk(CONFIG, 1, b"x")], "chunk.offset"),
    "a gap": ([header(), chunk(CONFIG, 0, b"xx"), chunk(CONFIG, 3, b"x")], "chunk.offset"),
    "an overlap": ([header(), chunk(CONFIG, 0, b"xx"), chunk(CONFIG, 1, b"x")], "chunk.offset"),
    "a huge offset": ([header(), chunk(CONFIG, 2**64 - 1, b"x")], "chunk.offset"),
    "a bad name": ([header(name="../x")], "registration.name"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_malformed_upload_is_refused_by_the_name_of_the_field(upload: Any, what: str) -> None:
    """Row 13: gaps among them."""
    messages, field = WRONG[what]

    failure = failure_of(lambda: upload(iter(messages)))

    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in failure.violations] == [field]


def test_an_upload_without_a_file_is_an_invalid_adapter(upload: Any, packages: Path) -> None:
    config = [message for message in pieces(packages / "red", 10**6) if message.chunk.file_name == CONFIG]

    assert failure_of(lambda: upload(iter([header()]))).reason == "ADAPTER_INVALID"
    assert WEIGHTS in failure_of(lambda: upload(iter([header(), *config]))).message


def test_pieces_of_both_files_may_come_in_turns(
    upload: Any, tight_client: LoraplexClient, packages: Path
) -> None:
    adapter = upload(iter([header(), *pieces(packages / "red", 999)])).adapter

    assert adapter.digest == tight_client.adapters.get("red").digest
    tight_client.adapters.delete("sent")


def test_an_upload_above_the_byte_budget_is_cut_off(
    tight_client: LoraplexClient, new_adapter: NewAdapter
) -> None:
    """Row 13."""
    folder = new_adapter("too-large", r=16)

    with pytest.raises(OverloadedError, match="larger than 100000 bytes") as caught:
        tight_client.adapters.upload("sent", folder)

    assert caught.value.reason == "UPLOAD_TOO_LARGE"
    assert caught.value.retry_after_s is None


def test_an_upload_that_never_ends_is_cut_off_at_the_budget(upload: Any) -> None:
    """Row 13."""
    sent = 0

    def endless() -> Iterator[Message]:
        nonlocal sent
        yield header()
        while True:
            yield chunk(WEIGHTS, sent, b"x" * 10_000)
            sent += 10_000

    assert failure_of(lambda: upload(endless())).reason == "UPLOAD_TOO_LARGE"


def test_a_package_with_another_digest_than_announced_is_refused(
    tight_client: LoraplexClient, packages: Path
) -> None:
    """Row 12."""
    with pytest.raises(InvalidRequestError, match="digest"):
        tight_client.adapters.upload("sent", packages / "red", expected_digest="0" * 64)


@pytest.mark.parametrize("sent_before", [[], [header()], [header(), chunk(CONFIG, 0, b"{")]], ids=len)
def test_an_upload_that_falls_silent_is_ended(upload: Any, sent_before: list[Message]) -> None:
    """Row 13."""
    over = threading.Event()

    def messages() -> Iterable[Message]:
        yield from sent_before
        over.wait(30)

    try:
        failure = failure_of(lambda: upload(messages()))
    finally:
        over.set()

    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failure.reason == "DEADLINE_EXCEEDED"


def test_a_bad_name_is_refused_before_any_bytes_are_awaited(upload: Any) -> None:
    over = threading.Event()

    def messages() -> Iterable[Message]:
        yield header(name="../x")
        over.wait(30)

    try:
        failure = failure_of(lambda: upload(messages()))
    finally:
        over.set()

    assert [violation.field for violation in failure.violations] == ["registration.name"]


def test_a_client_that_gives_up_leaves_nothing_behind(upload: Any, tight_server: LiveServer) -> None:
    over = threading.Event()

    def messages() -> Iterable[Message]:
        yield header()
        yield chunk(CONFIG, 0, b"{")
        over.wait(30)

    call = upload.future(messages())
    eventually(lambda: os.listdir(tight_server.data_dir / "uploads") != [])
    call.cancel()
    over.set()

    assert call.code() is grpc.StatusCode.CANCELLED
