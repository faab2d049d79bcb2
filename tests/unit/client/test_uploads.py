from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from loraplex.v1 import adapter_pb2
from loraplex_client import (
    AsyncLoraplexClient,
    DeadlineError,
    InvalidRequestError,
    LoraplexClient,
    OverloadedError,
    PreconditionError,
    ServerUnreachableError,
    UnavailableError,
)
from loraplex_client.adapter_requests import RegisterOptions, registration
from loraplex_client.upload import UPLOAD_CHUNK_BYTES, check_upload_files, upload_requests
from tests.unit.client.faults import Fault, error_info, retry_info
from tests.unit.client.scripted_server import ScriptedServer

UNAVAILABLE = Fault(grpc.StatusCode.UNAVAILABLE, details=(error_info("DRAINING"),))
CONTENTS = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": bytes(range(256)) * (4 * UPLOAD_CHUNK_BYTES // 256 + 1),
    "manifest.json": b'{"a": 1}',
    "model.sig": b"signature",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, data in CONTENTS.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def chunks(messages: list[adapter_pb2.UploadAdapterRequest]) -> list[adapter_pb2.UploadAdapterRequest.Chunk]:
    header, *rest = messages
    assert header.HasField("header")
    return [message.chunk for message in rest]


def kept(server: ScriptedServer) -> dict[str, bytes]:
    """What the server has of the only upload."""
    (files,) = server.adapters.received.values()
    return {name: bytes(data) for name, data in files.items()}


def test_an_upload_carries_all_files_in_bounded_pieces_in_order(package: Path) -> None:
    _, *pieces = upload_requests(registration("n", {}), package)

    received = dict.fromkeys(CONTENTS, b"")
    for piece in pieces:
        assert 1 <= len(piece.chunk.data) <= UPLOAD_CHUNK_BYTES
        assert piece.chunk.offset == len(received[piece.chunk.file_name])
        received[piece.chunk.file_name] += piece.chunk.data
    assert received == CONTENTS


def test_manifest_and_signature_are_sent_only_where_there_are_such(package: Path) -> None:
    (package / "manifest.json").unlink()
    (package / "model.sig").unlink()

    _, *pieces = upload_requests(registration("n", {}), package)

    assert {piece.chunk.file_name for piece in pieces} == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_folder_without_weights_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")

    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        check_upload_files(tmp_path)


async def test_both_clients_send_the_same_upload(server: ScriptedServer, package: Path) -> None:
    looks: list[tuple[int, int]] = []
    options: RegisterOptions = {"request_id": "once", "alias": "canary", "on_existing": "add_version"}

    with LoraplexClient(server.target) as client:
        made = client.adapters.upload(
            "shop", package, upload_id="mine", on_progress=lambda *look: looks.append(look), **options
        )
    server.adapters.received.clear()
    async with AsyncLoraplexClient(server.target) as async_client:
        made_async = await async_client.adapters.upload("shop", package, upload_id="mine", **options)

    first, second = server.adapters.uploads
    assert first == second
    assert first[0].header.upload_id == "mine"
    assert first[0].header.registration == registration("shop", options)
    total = sum(map(len, CONTENTS.values()))
    assert looks[-1] == (total, total)
    assert made == made_async
    assert (made.name, made.digest, made.rank) == ("shop", made.version.digest, 16)


@pytest.mark.parametrize("breaks", [[1], [3], [2, 1, 2]], ids=str)
def test_a_broken_upload_goes_on_from_what_the_server_has(
    client: LoraplexClient, server: ScriptedServer, package: Path, breaks: list[int]
) -> None:
    server.adapters.break_after_chunks = list(breaks)

    client.adapters.upload("shop", package)

    assert len(server.adapters.uploads) == len(breaks) + 1
    headers = [messages[0].header for messages in server.adapters.uploads]
    assert len({header.upload_id for header in headers}) == 1
    assert len({header.registration.request_id for header in headers}) == 1
    assert not any(header.start_over for header in headers)
    assert kept(server) == CONTENTS  # the server refuses a byte that it has already
    for messages, num_chunks in zip(server.adapters.uploads, breaks, strict=False):
        assert len(chunks(messages)) == num_chunks
    sent = sum(len(chunk.data) for messages in server.adapters.uploads for chunk in chunks(messages))
    assert sent == sum(map(len, CONTENTS.values()))


async def test_the_async_client_goes_on_alike(server: ScriptedServer, package: Path) -> None:
    server.adapters.break_after_chunks = [2, 1]

    async with AsyncLoraplexClient(server.target, timeout_s=30) as client:
        await client.adapters.upload("shop", package)

    assert len(server.adapters.uploads) == 3
    assert kept(server) == CONTENTS


def test_progress_tells_what_the_server_has_after_a_break(
    client: LoraplexClient, server: ScriptedServer, package: Path
) -> None:
    server.adapters.break_after_chunks = [3]
    looks: list[int] = []

    client.adapters.upload("shop", package, on_progress=lambda sent, total: looks.append(sent))

    assert looks[-1] == sum(map(len, CONTENTS.values()))


def test_a_lost_call_that_still_holds_the_upload_is_waited_for(
    client: LoraplexClient, server: ScriptedServer, package: Path
) -> None:
    server.adapters.break_after_chunks = [1]
    server.adapters.busy_uploads = 2

    client.adapters.upload("shop", package)

    assert kept(server) == CONTENTS


def test_an_upload_of_an_earlier_process_is_gone_on_with(
    client: LoraplexClient, server: ScriptedServer, package: Path
) -> None:
    weights = "adapter_model.safetensors"
    server.adapters.received["left"] = {
        "adapter_config.json": bytearray(b"{}"),
        weights: bytearray(CONTENTS[weights][:1000]),
    }

    client.adapters.upload("shop", package, upload_id="left")

    (messages,) = server.adapters.uploads
    assert (chunks(messages)[0].file_name, chunks(messages)[0].offset) == (weights, 1000)
    assert kept(server) == CONTENTS


OTHER_FILES = {
    "of other weights": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"\x01" * 1000},
    "longer than this one": {"adapter_config.json": b"{}}"},
    "with a file that this one has not": {"adapter_config.json": b"{}", "model.sig": b"signature"},
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_an_upload_of_an_earlier_process_of_another_package_starts_over(
    client: LoraplexClient, server: ScriptedServer, package: Path, what: str
) -> None:
    (package / "model.sig").unlink()
    server.adapters.received["left"] = {name: bytearray(data) for name, data in OTHER_FILES[what].items()}
    server.adapters.break_after_chunks = [1, 2]  # the first call has none

    client.adapters.upload("shop", package, upload_id="left")

    assert kept(server) == {name: data for name, data in CONTENTS.items() if name != "model.sig"}
    headers = [messages[0].header for messages in server.adapters.uploads if messages]
    assert [header.start_over for header in headers] == [False, True, False]


def test_a_package_that_changes_while_its_upload_is_broken_is_sent_whole(
    server: ScriptedServer, package: Path
) -> None:
    """As by a training that writes into the same folder."""
    weights = package / "adapter_model.safetensors"
    server.adapters.break_after_chunks = [3]

    def retrain(sent: int, total: int) -> None:
        if sent > UPLOAD_CHUNK_BYTES and len(server.adapters.uploads) == 1:
            (package / "new").write_bytes(CONTENTS["adapter_model.safetensors"][::-1])
            (package / "new").replace(weights)

    with LoraplexClient(server.target) as client:
        client.adapters.upload("shop", package, on_progress=retrain)

    assert kept(server) == {**CONTENTS, weights.name: CONTENTS[weights.name][::-1]}


def test_an_upload_of_another_adapter_is_left_to_it(
    client: LoraplexClient, server: ScriptedServer, package: Path
) -> None:
    server.adapters.received["theirs"] = {"adapter_config.json": bytearray(b"{}")}
    server.adapters.foreign_uploads = {"theirs"}

    with pytest.raises(PreconditionError) as refused:
        client.adapters.upload("shop", package, upload_id="theirs")

    assert refused.value.reason == "UPLOAD_MISMATCH"


def test_without_an_upload_id_a_broken_upload_is_given_up(
    client: LoraplexClient, server: ScriptedServer, package: Path
) -> None:
    server.adapters.break_after_chunks = [1]

    with pytest.raises(UnavailableError):
        client.adapters.upload("shop", package, upload_id="")
    assert len(server.adapters.uploads) == 1


def test_a_busy_server_is_asked_again_when_it_says(
    client: LoraplexClient, server: ScriptedServer, package: Path
) -> None:
    server.faults = [
        Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, details=(error_info("BUSY"), retry_info(0.01)))
    ]

    client.adapters.upload("shop", package)

    assert kept(server) == CONTENTS


def test_an_upload_too_large_is_not_sent_again(
    client: LoraplexClient, server: ScriptedServer, package: Path
) -> None:
    server.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, details=(error_info("UPLOAD_TOO_LARGE"),))]

    with pytest.raises(OverloadedError):
        client.adapters.upload("shop", package)
    assert server.num_calls == 1


def test_a_refused_package_is_not_sent_again(
    client: LoraplexClient, server: ScriptedServer, package: Path
) -> None:
    server.faults = [Fault(grpc.StatusCode.INVALID_ARGUMENT, details=(error_info("ADAPTER_INVALID"),))]

    with pytest.raises(InvalidRequestError):
        client.adapters.upload("shop", package)
    assert server.num_calls == 1


def test_going_on_ends_with_the_deadline(
    client: LoraplexClient, server: ScriptedServer, package: Path
) -> None:
    server.faults = [UNAVAILABLE] * 1000

    with pytest.raises((UnavailableError, DeadlineError)):  # whichever comes last
        client.adapters.upload("shop", package, timeout_s=1)


def test_an_upload_to_nobody_is_given_up_after_the_published_attempts(package: Path) -> None:
    with LoraplexClient("127.0.0.1:1", timeout_s=120) as client, pytest.raises(ServerUnreachableError):
        client.adapters.upload("shop", package)
