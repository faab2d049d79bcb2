"""A whole list of what must be refused, while streams of other adapters run: refused each, and not a token moves.

Rows are those of the project's list of faults, whose order the cases follow; reasons are those of docs/errors.md.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_client import LoraplexApiError, LoraplexClient
from loraplex_client.errors import api_error
from tests.integration.conftest import ADAPTERS, register_all
from tests.integration.live_server import LiveServer, await_idle, eventually, running_server
from tests.integration.raw_calls import raw_channel
from tests.integration.streams import unchanged_streams
from tests.support import bad_packages
from tests.support.bad_packages import Spoil, rewrite_weights

REFUSED_WITHIN_S = 10.0  # a second is promised; a machine that is busy with other tests may take longer
MAX_GROWTH_BYTES = 64 * 2**20  # of the front end over the whole list
MAX_ADAPTER_BYTES = 80 * 10**6  # a million tensors fit, and an upload without end is soon there
INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
WEIGHTS = "adapter_model.safetensors"
NEW = "bad/refused"
"""A name of a tenant whose quota is far away."""

Message = adapter_pb2.UploadAdapterRequest
Attempt = Callable[[LoraplexClient], object]


@dataclass(frozen=True)
class Refused:
    """A call that must fail, and how."""

    title: str
    call: Attempt
    code: grpc.StatusCode
    reason: str


@pytest.fixture(scope="module")
def bounded_server(
    tiny_base: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server whose quotas and budgets a test can meet. The default tenant is full with ADAPTERS."""
    settings = {
        "adapter_roots": packages,
        "max_adapter_bytes": MAX_ADAPTER_BYTES,
        "max_adapters_per_tenant": len(ADAPTERS),
        "upload_idle_timeout_s": 0.5,
    }
    with running_server(tiny_base, tmp_path_factory.mktemp("bounded-server"), **settings) as live:
        register_all(live, packages)
        yield live


@pytest.fixture
def place(packages: Path) -> Iterator[Path]:
    """A folder below the server's root."""
    folder = packages / "bad-packages"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


async def test_every_bad_registration_is_refused_and_streams_of_other_adapters_keep_every_token(
    bounded_server: LiveServer, packages: Path, place: Path
) -> None:
    """Rows 5 to 15."""
    with bounded_server.client() as client:
        cases = [
            *bad_names(packages),
            *bad_paths(place),
            *bad_contents(packages / "red", place),
            *bad_uploads(bounded_server),
            *conflicts(client, packages, place),
        ]
        listed = [(adapter.name, adapter.etag) for adapter in client.adapters.list()]
        front_end = psutil.Process(bounded_server.process.pid)

        async with unchanged_streams(bounded_server, ADAPTERS):
            bytes_before = front_end.memory_info().rss
            failures = [await asyncio.to_thread(failure_of_case, case, client) for case in cases]
            bytes_after = front_end.memory_info().rss

        assert [f for f in failures if f] == []
        assert bytes_after < bytes_before + MAX_GROWTH_BYTES
        assert [(adapter.name, adapter.etag) for adapter in client.adapters.list()] == listed
        eventually(lambda: not list((bounded_server.data_dir / "uploads").iterdir()))
        eventually(lambda: len(list((bounded_server.data_dir / "adapters").glob("?" * 64))) == len(ADAPTERS))
        await_idle(client)


def failure_of_case(case: Refused, client: LoraplexClient) -> str:
    """What is wrong with a refusal; empty: nothing."""
    began_s = time.monotonic()
    try:
        case.call(client)
    except LoraplexApiError as error:
        failure = error
    except grpc.RpcError as error:
        failure = api_error(error)
    else:
        return f"{case.title} was taken"
    took_s = time.monotonic() - began_s
    if (failure.code, failure.reason) != (case.code, case.reason):
        return f"{case.title}: {failure.code} {failure.reason}: {failure.message}"
    if took_s > REFUSED_WITHIN_S:
        return f"{case.title} took {took_s:.1f} s"
    return ""


def bad_names(packages: Path) -> Iterator[Refused]:
    names = ["", "../x", "a/b/c", "a,b", "a\0", "x" * 300, "\u0430dmin", "base"]
    for name in names:
        for title, call in ways(name, packages / "red"):
            yield Refused(f"row 5: name {name[:10]!r} by {title}", call, INVALID, "INVALID_REQUEST")


def bad_paths(place: Path) -> Iterator[Refused]:
    link = place / "link"
    link.symlink_to("/etc")
    for path in ("/etc", str(link), str(place / ".." / ".." / ".."), "red", f"{place}\0"):
        yield Refused(f"row 6: path {path}", create_from(path=path), INVALID, "INVALID_REQUEST")
    for url in ("file:///etc/passwd", link.as_uri(), "ftp://host/x", "file://host/x"):
        yield Refused(f"row 6: {url}", create_from(url=url), INVALID, "INVALID_REQUEST")
    yield Refused(
        "row 6: a private address",
        create_from(url="http://127.0.0.1:9/x"),
        PRECONDITION,
        "SOURCE_UNAVAILABLE",
    )


def b_of_zeros(folder: Path) -> None:
    rewrite_weights(folder, lambda key, w: (key, np.zeros_like(w) if "lora_B" in key else w))


def bad_contents(sound: Path, place: Path) -> Iterator[Refused]:
    """Every damaged package, by the folder and by an upload where a client can send it."""
    rows: list[tuple[int, Spoil, grpc.StatusCode, str]] = [
        (row, spoil, INVALID, "ADAPTER_INVALID")
        for row, spoils in bad_packages.INVALID.items()
        for spoil in spoils
    ]
    rows += [(11, spoil, PRECONDITION, "BASE_MISMATCH") for spoil in bad_packages.FOREIGN]
    rows += [(9, b_of_zeros, PRECONDITION, "NO_EFFECT")]
    for row, spoil, code, reason in rows:
        folder = place / spoil.__name__ / "package"
        shutil.copytree(sound, folder)
        spoil(folder)
        can_be_sent = all(
            path.is_file() and not path.is_symlink() and path.suffix != ".bin" for path in folder.iterdir()
        )
        for title, call in ways(NEW, folder):
            if title == "folder" or (can_be_sent and (folder / WEIGHTS).exists()):
                yield Refused(f"row {row}: {spoil.__name__} by {title}", call, code, reason)
    for title, call in ways(NEW, sound, expected_digest="0" * 64):
        yield Refused(f"row 12: another digest by {title}", call, INVALID, "DIGEST_MISMATCH")


def bad_uploads(server: LiveServer) -> Iterator[Refused]:
    def header() -> Message:
        return Message(header=Message.Header(registration=adapter_pb2.Registration(name=NEW)))

    def chunk(offset: int, size: int) -> Message:
        return Message(chunk=Message.Chunk(file_name=WEIGHTS, offset=offset, data=bytes(size)))

    def endless() -> Iterator[Message]:
        yield header()
        for offset in range(0, 100 * MAX_ADAPTER_BYTES, 2**20):
            yield chunk(offset, 2**20)

    def silent() -> Iterator[Message]:
        yield header()
        yield chunk(0, 1)
        time.sleep(3)

    def send(messages: Callable[[], Iterator[Message]]) -> Attempt:
        def call(client: LoraplexClient) -> object:
            with raw_channel(server) as channel:
                return adapter_pb2_grpc.AdapterServiceStub(channel).UploadAdapter(messages())

        return call

    exhausted, late = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED
    yield Refused("row 13: no end", send(endless), exhausted, "UPLOAD_TOO_LARGE")
    yield Refused(
        "row 13: a gap",
        send(lambda: iter([header(), chunk(0, 2), chunk(3, 2)])),
        INVALID,
        "INVALID_REQUEST",
    )
    yield Refused("row 13: silence", send(silent), late, "DEADLINE_EXCEEDED")


def conflicts(client: LoraplexClient, packages: Path, place: Path) -> Iterator[Refused]:
    """Of names, ids and etags. Each is refused for what the server holds, not for the package."""
    exists, stale = grpc.StatusCode.ALREADY_EXISTS, client.adapters.get("blue").etag
    first = client.adapters.update_labels("blue", {"team": "a"}, request_id="of-labels")
    assert client.adapters.update_labels("blue", {"team": "a"}, request_id="of-labels").etag == first.etag
    for title, call in ways("one-too-many", packages / "red"):
        yield Refused(f"row 13: quota by {title}", call, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    yield Refused(
        "row 14: other labels under the same id",
        lambda c: c.adapters.update_labels("blue", {"team": "b"}, request_id="of-labels"),
        exists,
        "REQUEST_ID_REUSED",
    )
    for title, call in ways("red", packages / "green"):
        yield Refused(f"row 15: a name in use by {title}", call, exists, "ADAPTER_EXISTS")
    yield Refused(
        "row 15: a stale etag",
        lambda c: c.adapters.update_labels("blue", {}, etag=stale),
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
    )


def create_from(**source: Any) -> Attempt:
    return lambda client: client.adapters.create(NEW, **source)


def ways(name: str, folder: Path, **options: Any) -> Iterator[tuple[str, Attempt]]:
    """How a folder can be registered."""
    yield "folder", lambda client: client.adapters.create(name, folder, **options)
    # Without an id nothing is kept to go on with, whatever it is refused for.
    yield "upload", lambda client: client.adapters.upload(name, folder, upload_id="", **options)
