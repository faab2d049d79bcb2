"""The writes that kills come between: what each sends, and what it does to a plain model of the registry."""

from __future__ import annotations

import copy
import hashlib
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from benchmarks.kills_stage import Stage
from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_adapters.names import AdapterName
from loraplex_client import LoraplexClient, NotFoundError
from loraplex_client.adapter_requests import registration
from loraplex_client.errors import api_error
from loraplex_client.upload import UPLOAD_FILES
from tests.support.release_model import ModelRegistry, Refused

CHUNK_BYTES = 4096
ALIASES = ("stable", "canary")
_REGISTRATIONS = ("stream", "stream", "upload", "folder")
CHANGES = (
    *("promote", "rollback", "split", "end_split", "shadow", "end_shadow", "pin", "unpin", "labels"),
    *("deprecate", "undeprecate", "delete_version", "delete"),
)
_REGISTRATION_SHARE = 0.6
_WANTED_TRIES = 50  # drawings of a kind that is wanted, until another one is taken
_PINNING_TENANT = "t0"
_PAUSES_S = (0.0, 0.001, 0.005)  # between two chunks: some clients are slow

Message = adapter_pb2.UploadAdapterRequest


@dataclass(frozen=True)
class Write:
    """One change. Sent again it is the same one: its ids are drawn once."""

    kind: str  # "stream", "upload", "folder": a registration by that way; else the call
    name: str
    package: int = 0
    alias: str = "stable"  # of a registration: "" or another one
    how: str = "refuse"  # on_existing of a registration
    weight: int = 1  # of a split; it is also the label's
    pause_s: float = 0.0  # between the chunks of a stream
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def upload_id(self) -> str:
        """Empty where nothing is kept to go on with."""
        return f"of-{self.request_id}" if self.kind == "stream" else ""

    @property
    def upload_folder(self) -> str:
        """Where the server keeps what it has of a stream, among its uploads."""
        name = AdapterName.parse(self.name)
        return f"id-{self.upload_id}@{name.tenant}@{name.adapter}"

    @property
    def _labels(self) -> dict[str, str]:
        return {"weight": str(self.weight)}

    def apply(self, model: ModelRegistry) -> None:
        """Raises Refused, and changes nothing, where the server must refuse."""
        match self.kind:
            case "promote":
                model.promote(self.name, self.package, self.alias)
            case "rollback":
                model.rollback(self.name, self.alias)
            case "split":
                model.split(self.name, [("stable", 3), (self.package, self.weight)])
            case "end_split":
                model.split(self.name, [])
            case "shadow":
                model.set_shadow(self.name, self.package)
            case "end_shadow":
                model.set_shadow(self.name, None)
            case "pin" | "unpin":
                model.pin(self.name, self.kind == "pin")
            case "labels":
                model.update_labels(self.name, self._labels)
            case "deprecate" | "undeprecate":
                model.deprecate(self.name, self.package, undo=self.kind == "undeprecate")
            case "delete_version":
                model.delete_version(self.name, self.package)
            case "delete":
                model.delete(self.name)
            case _:
                model.register(self.name, self.package, self.how, self.alias)

    def after(self, model: ModelRegistry) -> ModelRegistry:
        """What `model` is then; `model` stays. Raises Refused."""
        changed = copy.deepcopy(model)
        self.apply(changed)
        return changed

    def send(self, client: LoraplexClient, channel: grpc.Channel, stage: Stage) -> None:
        """Returns once it is acknowledged. `channel` is one that repeats nothing. Raises LoraplexApiError."""
        adapters, digest, folder = client.adapters, stage.digests[self.package], stage.folders[self.package]
        once, timeout_s = self.request_id, stage.timeout_s
        match self.kind:
            case "stream":
                send_stream(adapter_pb2_grpc.AdapterServiceStub(channel), self, folder, timeout_s)
            case "upload":
                adapters.upload(
                    self.name, folder, upload_id="", on_existing=self.how, alias=self.alias, request_id=once
                )
            case "folder":
                adapters.create(self.name, folder, on_existing=self.how, alias=self.alias, request_id=once)
            case "promote":
                adapters.promote(self.name, digest, alias=self.alias, request_id=once)
            case "rollback":
                adapters.rollback(self.name, alias=self.alias, request_id=once)
            case "split":
                adapters.split(self.name, {"stable": 3, digest: self.weight}, request_id=once)
            case "end_split":
                adapters.split(self.name, {}, request_id=once)
            case "shadow":
                adapters.set_shadow(self.name, digest, request_id=once)
            case "end_shadow":
                adapters.set_shadow(self.name, "", request_id=once)
            case "pin":
                adapters.pin(self.name, request_id=once)
            case "unpin":
                adapters.unpin(self.name, request_id=once)
            case "labels":
                adapters.update_labels(self.name, self._labels, request_id=once)
            case "deprecate" | "undeprecate":
                undo = self.kind == "undeprecate"
                adapters.deprecate(self.name, digest, undo=undo, request_id=once)
            case "delete_version":
                adapters.delete_version(self.name, digest, request_id=once)
            case "delete":
                adapters.delete(self.name, request_id=once)


def draw(
    choice: random.Random, tenant: str, model: ModelRegistry, num_packages: int, wanted: str = ""
) -> Write:
    """A write that takes effect on `model`, drawn at random; of the kind that is wanted where one is found."""
    num_drawn = 0
    while True:
        is_registration = choice.random() < _REGISTRATION_SHARE
        kind = choice.choice(_REGISTRATIONS if is_registration else CHANGES)
        write = Write(
            kind=wanted if wanted and num_drawn < _WANTED_TRIES else kind,
            name=f"{tenant}/{choice.choice(('one', 'two'))}",
            package=choice.randrange(num_packages),
            alias=choice.choice(ALIASES),
            how=choice.choice(("add_version", "promote")),
            weight=choice.randint(1, 5),
            pause_s=choice.choice(_PAUSES_S),
        )
        if write.kind in _REGISTRATIONS and write.alias == "stable":
            write = replace(write, alias="")
        if _takes_effect(write, tenant, model):
            return write
        num_drawn += 1


def _takes_effect(write: Write, tenant: str, model: ModelRegistry) -> bool:
    """A registration may also find its version there already."""
    # One adapter of one tenant: with a split it holds two slots, and answers by other packages need one as well.
    if write.kind == "pin" and (
        tenant != _PINNING_TENANT or any(adapter.is_pinned for adapter in model.adapters.values())
    ):
        return False
    try:
        after = write.after(model)
    except Refused:
        return False
    return write.kind in _REGISTRATIONS or after.adapters != model.adapters


def send_stream(
    stub: adapter_pb2_grpc.AdapterServiceStub, write: Write, folder: Path, timeout_s: float
) -> None:
    """Upload in small chunks, from where the server is with it. Raises LoraplexApiError."""
    try:
        stub.UploadAdapter(_messages(write, folder, received(stub, write.upload_id)), timeout=timeout_s)
    except grpc.RpcError as error:
        raise api_error(error) from error


def received(stub: adapter_pb2_grpc.AdapterServiceStub, upload_id: str) -> Mapping[str, int]:
    """Bytes by file that the server has of an upload; empty: it knows none of that id. Raises grpc.RpcError."""
    try:
        return stub.GetUpload(adapter_pb2.GetUploadRequest(upload_id=upload_id), timeout=60).received_bytes
    except grpc.RpcError as error:
        if isinstance(api_error(error), NotFoundError):
            return {}
        raise


def _messages(write: Write, folder: Path, had: Mapping[str, int]) -> Iterator[Message]:
    """The header, which proves that what the server had is of this package, and every chunk behind it."""
    files = {name: (folder / name).read_bytes() for name in UPLOAD_FILES}
    proof = {name: hashlib.sha256(files[name][:size]).hexdigest() for name, size in had.items()}
    header = registration(
        write.name,
        {"on_existing": write.how, "alias": write.alias, "request_id": write.request_id},
    )
    yield Message(
        header=Message.Header(registration=header, upload_id=write.upload_id, received_sha256=proof)
    )
    for file_name, data in files.items():
        for offset in range(had.get(file_name, 0), len(data), CHUNK_BYTES):
            piece = data[offset : offset + CHUNK_BYTES]
            yield Message(chunk=Message.Chunk(file_name=file_name, offset=offset, data=piece))
            time.sleep(write.pause_s)
