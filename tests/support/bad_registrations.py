"""Registrations that every server must refuse, in the order of the project's list of faults: rows 5 to 15.

Rows 16 to 19 are about what is served, not about what is refused.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_client import LoraplexApiError, LoraplexClient
from loraplex_client.errors import api_error
from tests.support import bad_packages
from tests.support.bad_packages import Spoil, rewrite_weights

MAX_ADAPTER_BYTES = 80 * 10**6  # a million tensors fit, and an upload without end is soon there
NUM_ADAPTERS = 3
SETTINGS: dict[str, Any] = {
    "max_adapter_bytes": MAX_ADAPTER_BYTES,
    "max_adapters_per_tenant": NUM_ADAPTERS,
    "upload_idle_timeout_s": 0.5,
}
"""Of a server whose quotas and budgets are met; with NUM_ADAPTERS adapters its default tenant is full."""

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED, LATE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED
EXISTS, ABORTED = grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.ABORTED
WEIGHTS = "adapter_model.safetensors"
REASONS = {7: "UNSUPPORTED_FORMAT", 9: "NON_FINITE_WEIGHTS", 11: "UNSUPPORTED_PEFT_FEATURE"}
"""Of what is malformed in itself, by row; ADAPTER_INVALID for the others."""
NEW = "bad/refused"
"""A name of a tenant whose quota is far away."""

Message = adapter_pb2.UploadAdapterRequest
Attempt = Callable[[LoraplexClient], object]


@dataclass(frozen=True)
class BadRegistration:
    """A call that must fail, and how. Its reason is one of docs/errors.md."""

    row: int
    title: str
    call: Attempt
    code: grpc.StatusCode
    reason: str
    fields: tuple[str, ...] | None = None  # of its violations; None: whichever

    def refusal(self, client: LoraplexClient) -> LoraplexApiError | None:
        """What it fails with; None: it was taken."""
        try:
            self.call(client)
        except LoraplexApiError as error:
            return error
        except grpc.RpcError as error:
            return api_error(error)
        return None

    def problem_of(self, refusal: LoraplexApiError | None) -> str:
        """What is wrong with a refusal; empty: nothing."""
        if refusal is None:
            return f"row {self.row}: {self.title} was taken"
        if (refusal.code, refusal.reason) != (self.code, self.reason):
            return f"row {self.row}: {self.title}: {refusal.code} {refusal.reason}: {refusal.message}"
        fields = tuple(violation.field for violation in refusal.violations)
        if self.fields is not None and fields != self.fields:
            return f"row {self.row}: {self.title} named the fields {fields}, not {self.fields}"
        return ""


def all_cases(
    client: LoraplexClient, target: str, adapters: Sequence[str], packages: Path, place: Path
) -> list[BadRegistration]:
    """Cases for a server with SETTINGS at `target`, to which `client` speaks.

    Its `adapters`, NUM_ADAPTERS, are registered from folders of their names in `packages`. `place` is an empty folder
    below a root that it may read.
    """
    sound = packages / adapters[0]
    return [
        *bad_names(sound),
        *bad_paths(place),
        *bad_contents(sound, place),
        *bad_uploads(target),
        *conflicts(client, adapters, packages),
    ]


def bad_names(sound: Path) -> Iterator[BadRegistration]:
    names = ["", "../x", "a/b/c", "a,b", "a\0", "x" * 300, "\u0430dmin", "base"]
    for name in names:
        for way, call in ways(name, sound):
            yield BadRegistration(5, f"name {name[:10]!r} by {way}", call, INVALID, "INVALID_REQUEST")


def bad_paths(place: Path) -> Iterator[BadRegistration]:
    link = place / "link"
    link.symlink_to("/etc")
    paths = {
        "another root": "/etc",
        "a link out of the root": str(link),
        "a way up": str(place / ".." / ".." / ".."),
        "a relative path": "red",
        "a character 0": f"{place}\0",
    }
    for title, path in paths.items():
        yield BadRegistration(6, title, create_from(path=path), INVALID, "INVALID_REQUEST")
    urls = {
        "a file's URL": "file:///etc/passwd",
        "a link's URL": link.as_uri(),
        "another scheme": "ftp://host/x",
        "a file of a host": "file://host/x",
    }
    for title, url in urls.items():
        yield BadRegistration(6, title, create_from(url=url), INVALID, "INVALID_REQUEST")
    private = create_from(url="http://127.0.0.1:9/x")
    yield BadRegistration(6, "a private address", private, PRECONDITION, "SOURCE_UNAVAILABLE")


def b_of_zeros(folder: Path) -> None:
    rewrite_weights(folder, lambda key, w: (key, np.zeros_like(w) if "lora_B" in key else w))


def no_rank_in_both(folder: Path) -> None:
    """A has the even ranks, B the odd ones: neither is zero, their product is."""

    def change(key: str, weight: np.ndarray) -> tuple[str, np.ndarray]:
        ranks = np.arange(weight.shape[0 if "lora_A" in key else 1]) % 2 == int("lora_B" in key)
        return key, weight * (ranks[:, None] if "lora_A" in key else ranks).astype(weight.dtype)

    rewrite_weights(folder, change)


def tiny_weights(folder: Path) -> None:
    rewrite_weights(folder, lambda key, w: (key, w * np.asarray(1e-12, w.dtype) if "lora_B" in key else w))


def bad_contents(sound: Path, place: Path) -> Iterator[BadRegistration]:
    """Every damaged package, by the folder and by an upload where a client can send it."""
    rows: list[tuple[int, Spoil, grpc.StatusCode, str]] = [
        (row, spoil, INVALID, REASONS.get(row, "ADAPTER_INVALID"))
        for row, spoils in bad_packages.INVALID.items()
        for spoil in spoils
    ]
    rows += [(11, spoil, PRECONDITION, "BASE_MISMATCH") for spoil in bad_packages.FOREIGN]
    idle = (b_of_zeros, no_rank_in_both, tiny_weights)
    rows += [(9, spoil, PRECONDITION, "NO_EFFECT") for spoil in idle]
    for row, spoil, code, reason in rows:
        fields = (bad_packages.FAULTY_FIELDS[spoil],) if spoil in bad_packages.FAULTY_FIELDS else None
        folder = place / spoil.__name__ / "package"
        shutil.copytree(sound, folder)
        spoil(folder)
        can_be_sent = all(
            path.is_file() and not path.is_symlink() and path.suffix != ".bin" for path in folder.iterdir()
        )
        for way, call in ways(NEW, folder):
            if way == "folder" or (can_be_sent and (folder / WEIGHTS).exists()):
                yield BadRegistration(row, f"{spoil.__name__} by {way}", call, code, reason, fields)
    for way, call in ways(NEW, sound, expected_digest="0" * 64):
        yield BadRegistration(12, f"another digest by {way}", call, INVALID, "DIGEST_MISMATCH")


def bad_uploads(target: str) -> Iterator[BadRegistration]:
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
            with grpc.insecure_channel(target, [("grpc.enable_retries", 0)]) as channel:
                return adapter_pb2_grpc.AdapterServiceStub(channel).UploadAdapter(messages())

        return call

    def gapped() -> Iterator[Message]:
        return iter([header(), chunk(0, 2), chunk(3, 2)])

    yield BadRegistration(13, "no end", send(endless), EXHAUSTED, "UPLOAD_TOO_LARGE")
    yield BadRegistration(13, "a gap", send(gapped), INVALID, "INVALID_REQUEST")
    yield BadRegistration(13, "silence", send(silent), LATE, "DEADLINE_EXCEEDED")


def conflicts(client: LoraplexClient, adapters: Sequence[str], packages: Path) -> Iterator[BadRegistration]:
    """Of names, ids and etags. Each is refused for what the server holds, not for the package."""
    one, other, last = adapters
    stale = client.adapters.get(last).etag
    first = client.adapters.update_labels(last, {"team": "a"}, request_id="of-labels")
    assert client.adapters.update_labels(last, {"team": "a"}, request_id="of-labels").etag == first.etag
    for way, call in ways("one-too-many", packages / one):
        yield BadRegistration(13, f"quota by {way}", call, EXHAUSTED, "QUOTA_EXCEEDED")
    yield BadRegistration(
        14,
        "other labels under the same id",
        lambda c: c.adapters.update_labels(last, {"team": "b"}, request_id="of-labels"),
        EXISTS,
        "REQUEST_ID_REUSED",
    )
    for way, call in ways(one, packages / other):
        yield BadRegistration(15, f"a name in use by {way}", call, EXISTS, "ADAPTER_EXISTS")
    yield BadRegistration(
        15,
        "a stale etag",
        lambda c: c.adapters.update_labels(last, {}, etag=stale),
        ABORTED,
        "ETAG_MISMATCH",
    )


def create_from(**source: Any) -> Attempt:
    return lambda client: client.adapters.create(NEW, **source)


def ways(name: str, folder: Path, **options: Any) -> Iterator[tuple[str, Attempt]]:
    """How a folder can be registered."""
    yield "folder", lambda client: client.adapters.create(name, folder, **options)
    # Without an id nothing is kept to go on with, whatever it is refused for.
    yield "upload", lambda client: client.adapters.upload(name, folder, upload_id="", **options)
