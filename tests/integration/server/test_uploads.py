"""Uploads that go wrong on the wire: each ends with its status, and nothing of it stays."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
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
PIECE = 10_000  # bytes: a whole configuration; half of the weights of a tiny adapter, tensors among them
Message = adapter_pb2.UploadAdapterRequest


def header(**fields: Any) -> Message:
    return Message(header=Message.Header(registration=adapter_pb2.Registration(**{"name": "sent", **fields})))


def named_header(*, name: str = "sent", expected_digest: str = "", **fields: Any) -> Message:
    """Of an upload that can be gone on with."""
    registration = adapter_pb2.Registration(name=name, expected_digest=expected_digest)
    return Message(header=Message.Header(registration=registration, upload_id="ci", **fields))


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


@pytest.fixture
def stub(tight_server: LiveServer) -> Iterator[Any]:
    with raw_channel(tight_server) as channel:
        yield adapter_pb2_grpc.AdapterServiceStub(channel)


@pytest.fixture
def half_of_red(stub: Any, packages: Path) -> list[Message]:
    """The configuration and a part of the weights of "red" are kept as upload "ci" of "sent"; what is still to come."""
    sent = pieces(packages / "red", PIECE)
    before, after = sent[:2], sent[2:]
    assert {message.chunk.file_name for message in after} == {WEIGHTS}
    over = threading.Event()

    def messages() -> Iterator[Message]:
        yield from (named_header(), *before)
        over.wait(30)

    expected = {message.chunk.file_name: len(message.chunk.data) for message in before}
    call = stub.UploadAdapter.future(messages())
    eventually(lambda: received(stub) == expected)
    call.cancel()
    over.set()
    eventually(lambda: failure_of(lambda: stub.UploadAdapter(iter([named_header()]))).reason != "UPLOAD_BUSY")
    return after


@pytest.fixture(scope="session")
def retrained(packages: Path, new_adapter: NewAdapter) -> Path:
    """Of red's rank and modules, so that a mixture of both, with files of equal sizes and headers, would look sound."""
    folder = new_adapter("retrained", r=2)
    assert (folder / CONFIG).read_bytes() == (packages / "red" / CONFIG).read_bytes()
    assert (folder / WEIGHTS).stat().st_size == (packages / "red" / WEIGHTS).stat().st_size
    return folder


def received(stub: Any) -> dict[str, int]:
    with suppress(grpc.RpcError):
        return dict(stub.GetUpload(adapter_pb2.GetUploadRequest(upload_id="ci")).received_bytes)
    return {}


def proof(stub: Any, folder: Path) -> dict[str, str]:
    """SHA-256 of what the server need not be sent again, had it come from `folder`."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()[:size]).hexdigest()
        for name, size in received(stub).items()
    }


def test_another_package_under_the_id_of_a_broken_upload_is_sent_whole(
    half_of_red: list[Message], tight_client: LoraplexClient, retrained: Path
) -> None:
    alone = tight_client.adapters.upload("sent", retrained, validate_only=True)

    made = tight_client.adapters.upload("sent", retrained, upload_id="ci")

    assert made.digest == alone.digest
    tight_client.adapters.delete("sent")


def test_the_same_package_under_the_id_of_a_broken_upload_goes_on(
    half_of_red: list[Message], tight_client: LoraplexClient, packages: Path
) -> None:
    looks: list[int] = []

    made = tight_client.adapters.upload(
        "sent", packages / "red", upload_id="ci", on_progress=lambda sent, total: looks.append(sent)
    )

    assert made.digest == tight_client.adapters.get("red").digest
    sizes = {name: (packages / "red" / name).stat().st_size for name in (CONFIG, WEIGHTS)}
    assert looks == [sum(sizes.values())]  # one piece, as the configuration was not sent again
    tight_client.adapters.delete("sent")


def test_bytes_that_are_kept_need_a_proof_of_what_they_are(
    half_of_red: list[Message], stub: Any, tight_client: LoraplexClient, packages: Path, retrained: Path
) -> None:
    """A client that counts bytes alone cannot have a mixture registered."""
    unproved = failure_of(lambda: stub.UploadAdapter(iter([named_header(), *half_of_red])))
    other = named_header(received_sha256=proof(stub, retrained))
    mismatch = failure_of(lambda: stub.UploadAdapter(iter([other, *half_of_red])))
    foreign = named_header(name="foreign", received_sha256=proof(stub, packages / "red"))
    not_its_own = failure_of(lambda: stub.UploadAdapter(iter([foreign, *half_of_red])))
    foreign.header.start_over = True
    not_its_own_either = failure_of(lambda: stub.UploadAdapter(iter([foreign])))

    assert [violation.field for violation in unproved.violations] == ["received_sha256"]
    assert "start_over" in unproved.message
    assert mismatch.code is grpc.StatusCode.FAILED_PRECONDITION
    assert {mismatch.reason, not_its_own.reason, not_its_own_either.reason} == {"UPLOAD_MISMATCH"}
    assert "start_over" in mismatch.message
    assert "choose another upload_id" in not_its_own.message
    with pytest.raises(NotFoundError):
        tight_client.adapters.get("foreign")

    own = named_header(received_sha256=proof(stub, packages / "red"))
    made = stub.UploadAdapter(iter([own, *half_of_red]))
    assert made.version.digest == tight_client.adapters.get("red").digest
    tight_client.adapters.delete("sent")


def test_the_digest_of_the_whole_package_is_proof_enough(
    half_of_red: list[Message], stub: Any, tight_client: LoraplexClient
) -> None:
    announced = named_header(expected_digest=tight_client.adapters.get("red").digest)

    assert stub.UploadAdapter(iter([announced, *half_of_red])).version.digest in str(announced)
    tight_client.adapters.delete("sent")


def test_an_upload_can_be_started_over(
    half_of_red: list[Message], stub: Any, tight_client: LoraplexClient, packages: Path
) -> None:
    made = stub.UploadAdapter(iter([named_header(start_over=True), *pieces(packages / "blue", PIECE)]))

    assert made.version.digest == tight_client.adapters.get("blue").digest
    tight_client.adapters.delete("sent")
