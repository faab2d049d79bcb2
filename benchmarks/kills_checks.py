"""What must be so when a server that was killed has started again, before anybody writes. Each raises KillFailure."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import grpc

from benchmarks.kills_stage import KillFailure, Stage
from benchmarks.kills_writer import Writer
from benchmarks.kills_writes import received
from loraplex.v1 import adapter_pb2_grpc
from loraplex_adapters.package import read_package
from loraplex_client import LoraplexClient
from loraplex_client.adapter_results import STABLE
from loraplex_client.upload import UPLOAD_FILES
from tests.integration.live_server import LiveServer, eventually

_SETTLED_S = 60.0
_OF_A_DATA_FOLDER = {"adapters", "images", "uploads", "registry.sqlite3", ".server-lock"}
_OF_SQLITE = {"registry.sqlite3-wal", "registry.sqlite3-shm"}


def check_restarted(
    stage: Stage, server: LiveServer, client: LoraplexClient, writers: Sequence[Writer]
) -> None:
    """All of it: registry, packages, pins, answers, uploads, and nothing else left."""
    check_registry(stage, client, writers)
    check_packages(stage, client)
    check_uploads(stage, server, writers)
    check_scratch(stage)
    check_pins(client)
    for writer in writers:
        writer.ask_all(client)


def check_registry(stage: Stage, client: LoraplexClient, writers: Sequence[Writer]) -> None:
    """What was acknowledged is there, and of what was under way all or nothing."""
    with closing(sqlite3.connect(f"file:{stage.data / 'registry.sqlite3'}?mode=ro", uri=True)) as database:
        (verdict,) = database.execute("pragma integrity_check").fetchone()
    if verdict != "ok":
        raise KillFailure(f"the registry's file is damaged: {verdict}")
    for writer in writers:
        parent = f"tenants/{writer.tenant}"
        writer.observe({adapter.name: adapter for adapter in client.adapters.list(parent=parent)})


def check_packages(stage: Stage, client: LoraplexClient) -> None:
    """Every version has its package, bit for bit; no other package or image is left, whole or in part."""
    needed = {version.digest for adapter in client.adapters.list() for version in adapter.versions}
    adapters = stage.data / "adapters"
    await_equal("packages", lambda: set(os.listdir(adapters)), needed | {".lock"})
    for digest in needed:
        if read_package(adapters / digest).digest != digest:
            raise KillFailure(f"package {digest[:12]} was changed")
    images = stage.data / "images"
    # An image is a cache: that of a package may be missing, and is made again when it is asked for.
    await_equal("images of no package", lambda: {p.name for p in images.glob("*/*")} - needed, set())
    others = set(os.listdir(stage.data)) - _OF_A_DATA_FOLDER - _OF_SQLITE
    if others:
        raise KillFailure(f"left in the data folder: {sorted(others)}")


def check_uploads(stage: Stage, server: LiveServer, writers: Sequence[Writer]) -> None:
    """Of uploads only those are kept that were never answered; each is a beginning of what was sent."""
    pending = [(w, w.pending) for w in writers if w.pending is not None and w.pending.upload_id]
    with grpc.insecure_channel(server.target) as channel:
        stub = adapter_pb2_grpc.AdapterServiceStub(channel)
        for writer, write in pending:
            had = received(stub, write.upload_id)
            _check_prefix(stage.data / "uploads" / write.upload_folder, had, stage.folders[write.package])
            if sum(had.values()) and not writer.has_taken_effect:
                writer.counts.resumed += 1
                writer.counts.resumed_bytes += sum(had.values())
    check_upload_folders(stage, [write.upload_folder for _, write in pending])


def check_pins(client: LoraplexClient) -> None:
    """What a pinned adapter serves comes into slots, though nobody asks for it."""

    def missing() -> set[str]:
        pinned = [adapter for adapter in client.adapters.list() if adapter.pinned]
        served = {
            adapter.version(target)
            for adapter in pinned
            for target in ([share.target for share in adapter.traffic] or [STABLE])
        }
        return {version.digest for version in served if not version.is_resident}

    await_equal("pinned versions in no slot", missing, set())


def check_upload_folders(stage: Stage, unanswered: Iterable[str]) -> None:
    """No upload is there but these."""
    left = set(os.listdir(stage.data / "uploads")) - set(unanswered)
    if left:
        raise KillFailure(f"left of uploads: {sorted(left)}")


def check_scratch(stage: Stage) -> None:
    """Of temporary files there are only the running server's: the folder of its engine's sockets."""

    def others() -> int:
        """But for an empty one that a kill can leave for an hour, in the instant before it is locked."""
        return sum(not name.startswith("loraplex-new-engine-") for name in os.listdir(stage.scratch))

    await_equal("temporary files", others, 1)


def check_nothing_is_left(stage: Stage, client: LoraplexClient) -> None:
    """When every adapter was deleted, so is every file of theirs."""
    for adapter in list(client.adapters.list()):
        client.adapters.delete(adapter.name)
    check_packages(stage, client)
    check_upload_folders(stage, ())


def await_equal(what: str, found: Callable[[], object], expected: object) -> None:
    """The server cleans up when it has started, beside its work."""
    try:
        eventually(lambda: found() == expected, _SETTLED_S)
    except AssertionError:
        raise KillFailure(f"{what}: {found()}, not {expected}") from None


def _check_prefix(upload: Path, had: Mapping[str, int], folder: Path) -> None:
    for name in UPLOAD_FILES:
        path = upload / name
        kept = path.read_bytes() if path.exists() else b""
        if len(kept) != had.get(name, 0) or not (folder / name).read_bytes().startswith(kept):
            raise KillFailure(f"an unfinished upload holds {len(kept)} bytes of {name} that were not sent so")
