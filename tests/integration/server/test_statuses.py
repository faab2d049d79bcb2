"""The table of statuses, row by row, as a caller without any retries of its own meets it."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from safetensors.torch import load_file, save_file

from loraplex.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    ops_pb2,
    ops_pb2_grpc,
)
from loraplex_adapters import errors as adapter_errors
from loraplex_adapters.errors import InvalidRequestError, LoraplexError, StorageError
from loraplex_client import LoraplexApiError
from loraplex_client.upload import upload_requests
from loraplex_server import errors as server_errors
from loraplex_server.rpc.status import STATUS_OF, status_code
from tests.integration.conftest import TIGHT, NewAdapter, StartServer
from tests.integration.live_server import LiveServer, eventually
from tests.integration.raw_calls import failure_of, raw_channel
from tests.integration.streams import PROMPT

NEVER_SENT = {
    server_errors.BaseModelError,  # a server whose base cannot be loaded ends before it serves
    server_errors.SequenceFailedError,  # the engine has no cause left to give up on one sequence alone
}
MET_ELSEWHERE = {
    adapter_errors.QuotaExceededError,  # by a server with quotas: test_policies
    adapter_errors.SignatureError,  # by one that requires signatures: test_policies
    adapter_errors.TooManyVersionsError,  # in the registry's own tests
    server_errors.TrainingDisabledError,  # this one and the next ones: test_training_jobs
    server_errors.TrainerMissingError,
    server_errors.TrainingJobNotFoundError,
    server_errors.TrainingJobStateError,
    server_errors.TrainingJobElsewhereError,  # by servers that share a registry: unit/training/test_service
}
WEIGHTS = "adapter_model.safetensors"


class Rows:
    """How to meet each row on the tight server. Later rows damage it."""

    def __init__(self, server: LiveServer, channel: grpc.Channel, packages: Path, fresh: Path) -> None:
        self._server = server
        self._packages = packages
        self._fresh = fresh  # a package of the test's own
        self._inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self._adapters = adapter_pb2_grpc.AdapterServiceStub(channel)
        self._ops = ops_pb2_grpc.OpsServiceStub(channel)

    def meet(self) -> Iterator[tuple[type[LoraplexError], LoraplexApiError]]:
        """Each row's error and what the caller got."""
        generate, upload = self._generate, self._upload
        yield InvalidRequestError, failure_of(lambda: generate(prompt=""))
        yield server_errors.ContextOverflowError, failure_of(lambda: generate(prompt=PROMPT * 2000))
        yield adapter_errors.AdapterNotFoundError, failure_of(lambda: generate(prompt="x", adapter="no"))
        yield adapter_errors.AdapterExistsError, failure_of(lambda: upload("red", self._packages / "blue"))
        yield adapter_errors.AdapterUnavailableError, self._damaged_package()
        yield adapter_errors.AdapterIncompatibleError, self._misfit()
        yield adapter_errors.AdapterTooLargeError, failure_of(lambda: upload("wide", self._packages / "wide"))
        yield adapter_errors.AdapterInvalidError, self._malformed()
        yield from self._releases()
        yield server_errors.UploadTooLargeError, failure_of(lambda: upload("big", self._packages / "big"))
        yield server_errors.DeadlineExceededError, self._silent_upload()
        yield server_errors.QueueFullError, self._full_queue()
        yield server_errors.WriteStallError, self._unread_stream()
        yield server_errors.EngineRestartedError, self._crash()
        yield server_errors.EngineUnavailableError, failure_of(lambda: generate(prompt="x"))
        eventually(lambda: self._server.metric("loraplex_engine_starts_total") == 3, 240)
        yield StorageError, self._broken_registry()
        yield server_errors.DrainingError, self._cut_off()

    def _generate(self, **fields: Any) -> object:
        return self._inference.Generate(inference_pb2.GenerateRequest(**fields))

    def _upload(self, name: str, folder: Path, **fields: Any) -> object:
        return self._adapters.UploadAdapter(
            upload_requests(adapter_pb2.Registration(name=name, **fields), folder)
        )

    def _releases(self) -> Iterator[tuple[type[LoraplexError], LoraplexApiError]]:
        """On an adapter "released" with two versions."""
        adapters, upload = self._adapters, self._upload
        old, new = self._packages / "red", self._packages / "green"
        digest = upload("released", old).version.digest  # type: ignore[attr-defined]
        rollback = adapter_pb2.RollbackAliasRequest(name="released")
        yield adapter_errors.NothingToRollBackError, failure_of(lambda: adapters.RollbackAlias(rollback))
        wrong = {"expected_digest": "0" * 64}
        assert failure_of(lambda: upload("another", old, **wrong)).reason == "DIGEST_MISMATCH"
        upload("released", new, on_existing=adapter_pb2.EXISTING_ADAPTER_ADD_VERSION, request_id="once")
        yield (
            adapter_errors.RequestIdReusedError,
            failure_of(lambda: upload("another", new, request_id="once")),
        )
        one = adapter_pb2.DeleteVersionRequest(name="released", version=digest)
        yield adapter_errors.VersionInUseError, failure_of(lambda: adapters.DeleteVersion(one))
        alias = adapter_pb2.DeleteAliasRequest(name="released", alias="stable")
        yield adapter_errors.AliasInUseError, failure_of(lambda: adapters.DeleteAlias(alias))
        stale = adapter_pb2.UpdateAdapterRequest(name="released", etag="1")
        yield adapter_errors.EtagMismatchError, failure_of(lambda: adapters.UpdateAdapter(stale))
        adapters.DeprecateVersion(adapter_pb2.DeprecateVersionRequest(name="released", version=digest))
        promote = adapter_pb2.PromoteVersionRequest(name="released", version=digest)
        yield adapter_errors.VersionDeprecatedError, failure_of(lambda: adapters.PromoteVersion(promote))
        for name in ("red", "released"):
            pin = adapter_pb2.PinAdapterRequest(name=name, pinned=True)
            if name == "red":
                adapters.PinAdapter(pin)
        adapters.SplitTraffic(
            adapter_pb2.SplitTrafficRequest(
                name="released",
                traffic=[
                    adapter_pb2.TrafficShare(target=v.digest, weight=1) for v in self._versions("released")
                ],
            )
        )
        yield adapter_errors.TooManyPinnedError, failure_of(lambda: adapters.PinAdapter(pin))
        url = adapter_pb2.CreateAdapterRequest(
            registration=adapter_pb2.Registration(name="far"), url="http://127.0.0.1:9/nothing"
        )
        yield adapter_errors.SourceUnavailableError, failure_of(lambda: adapters.CreateAdapter(url))
        yield adapter_errors.NoEffectError, failure_of(lambda: upload("idle", self._packages / "idle"))
        yield adapter_errors.EventsExpiredError, self._old_token()
        yield adapter_errors.UploadBusyError, self._busy_upload()
        yield adapter_errors.UploadMismatchError, self._upload_of_another_adapter()

    def _versions(self, name: str) -> list[adapter_pb2.Version]:
        return list(self._adapters.GetAdapter(adapter_pb2.GetAdapterRequest(name=name)).adapter.versions)

    def _old_token(self) -> LoraplexApiError:
        watch = adapter_pb2.WatchAdaptersRequest(resume_token="999999")
        return failure_of(lambda: list(self._adapters.WatchAdapters(watch)))

    def _busy_upload(self) -> LoraplexApiError:
        over = threading.Event()
        header = adapter_pb2.UploadAdapterRequest(
            header=adapter_pb2.UploadAdapterRequest.Header(
                registration=adapter_pb2.Registration(name="slow"), upload_id="busy"
            )
        )

        def messages() -> Iterator[adapter_pb2.UploadAdapterRequest]:
            yield header
            over.wait(60)

        first = self._adapters.UploadAdapter.future(messages())
        try:
            eventually(lambda: any(self._server.data_dir.glob("uploads/*busy*")))
            return failure_of(lambda: self._adapters.UploadAdapter(iter([header])))
        finally:
            first.cancel()
            over.set()

    def _upload_of_another_adapter(self) -> LoraplexApiError:
        def messages(name: str) -> Iterator[adapter_pb2.UploadAdapterRequest]:
            registration = adapter_pb2.Registration(name=name)
            yield from upload_requests(registration, self._packages / "red", "theirs")
            yield adapter_pb2.UploadAdapterRequest()  # breaks it off

        failure_of(lambda: self._adapters.UploadAdapter(messages("theirs")))
        return failure_of(lambda: self._adapters.UploadAdapter(messages("ours")))

    def _damaged_package(self) -> LoraplexApiError:
        digest = self._adapters.GetAdapter(adapter_pb2.GetAdapterRequest(name="blue")).adapter.digest
        shutil.rmtree(self._server.data_dir / "adapters" / digest)
        shutil.rmtree(self._server.data_dir / "images")
        self._server.kill_engine()  # which holds it in memory
        eventually(lambda: self._server.metric("loraplex_engine_starts_total") == 2, 240)
        return failure_of(lambda: self._generate(prompt="x", adapter="blue"))

    def _misfit(self) -> LoraplexApiError:
        tensors = load_file(self._fresh / WEIGHTS)
        save_file(
            {key.replace("layers.1", "layers.9"): t for key, t in tensors.items()}, self._fresh / WEIGHTS
        )
        return failure_of(lambda: self._upload("misfit", self._fresh))

    def _malformed(self) -> LoraplexApiError:
        (self._fresh / WEIGHTS).write_bytes(b"no tensors")
        return failure_of(lambda: self._upload("malformed", self._fresh))

    def _silent_upload(self) -> LoraplexApiError:
        over = threading.Event()

        def messages() -> Iterator[adapter_pb2.UploadAdapterRequest]:
            over.wait(60)
            yield from ()

        try:
            return failure_of(lambda: self._adapters.UploadAdapter(messages()))
        finally:
            over.set()

    def _full_queue(self) -> LoraplexApiError:
        with ExitStack() as calls:
            for number in range(TIGHT["max_running"] + TIGHT["max_waiting"]):
                call = self._inference.StreamGenerate(inference_pb2.StreamGenerateRequest(request=_endless()))
                calls.callback(call.cancel)
                if number < TIGHT["max_running"]:
                    next(call)
            eventually(lambda: self._num_waiting() == TIGHT["max_waiting"])
            failure = failure_of(lambda: self._generate(prompt="x"))
        # All have left before the next row asks.
        num_calls = TIGHT["max_running"] + TIGHT["max_waiting"]
        eventually(lambda: self._server.metric("loraplex_requests_total", finish="cancelled") == num_calls)
        return failure

    def _num_waiting(self) -> int:
        return self._ops.GetServerInfo(ops_pb2.GetServerInfoRequest()).load.waiting

    def _unread_stream(self) -> LoraplexApiError:
        request = _endless()
        request.options.top_logprobs = 20
        narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        with raw_channel(self._server, *narrow) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).StreamGenerate(
                inference_pb2.StreamGenerateRequest(request=request), timeout=60
            )
            next(call)
            eventually(lambda: self._server.metric("loraplex_rejects_total", reason="WRITE_STALLED") == 1)
            return failure_of(lambda: list(call))

    def _crash(self) -> LoraplexApiError:
        call = self._inference.StreamGenerate(inference_pb2.StreamGenerateRequest(request=_endless()))
        next(call)
        self._server.kill_engine()
        return failure_of(lambda: list(call))

    def _broken_registry(self) -> LoraplexApiError:
        database = sqlite3.connect(self._server.data_dir / "registry.sqlite3")
        database.execute("drop table adapters")
        database.close()
        return failure_of(lambda: self._adapters.DeleteAdapter(adapter_pb2.DeleteAdapterRequest(name="red")))

    def _cut_off(self) -> LoraplexApiError:
        call = self._inference.StreamGenerate(inference_pb2.StreamGenerateRequest(request=_endless()))
        next(call)
        self._ops.Drain(ops_pb2.DrainRequest(grace_seconds=0))
        return failure_of(lambda: list(call))


def _endless() -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        prompt=PROMPT, stopping=inference_pb2.StoppingCriteria(max_tokens=8000, ignore_eos=True)
    )


@pytest.fixture
def rows(own_server: StartServer, packages: Path, new_adapter: NewAdapter, tmp_path: Path) -> Iterator[Rows]:
    for name, rank in (("big", 16), ("wide", 12)):  # past the package's bound, and past the arena's alone
        if not (packages / name).exists():
            new_adapter(name, r=rank)
    server = own_server(
        **{**TIGHT, "default_deadline_s": 60, "adapter_arena_bytes": 80_000, "allow_private_hosts": True}
    )
    if not (packages / "idle").exists():  # changes nothing: as PEFT begins
        idle = new_adapter("idle", r=2)
        tensors = load_file(idle / WEIGHTS)
        save_file({k: t.zero_() if "lora_B" in k else t for k, t in tensors.items()}, idle / WEIGHTS)
    fresh = tmp_path / "fresh"
    shutil.copytree(packages / "red", fresh)
    with raw_channel(server) as channel:
        yield Rows(server, channel, packages, fresh)


def test_every_row_is_met_with_its_status_its_reason_and_its_details(rows: Rows) -> None:
    met = []
    for row, failure in rows.meet():
        assert (row, failure.code, failure.message) == (row, status_code(row.__new__(row)), failure.message)
        assert (row, failure.reason) == (row, row.reason)
        assert failure.request_id
        assert failure.message
        is_retryable = failure.code is grpc.StatusCode.UNAVAILABLE or row is server_errors.QueueFullError
        assert (row, failure.retry_after_s is not None) == (row, is_retryable)
        assert bool(failure.violations) is (row is InvalidRequestError)
        met.append(row)

    assert len(met) == len(set(met))
    assert set(met) | NEVER_SENT | MET_ELSEWHERE == set(STATUS_OF)


def test_reasons_are_unique_and_upper_snake() -> None:
    reasons = [row.reason for row in STATUS_OF]

    assert len(set(reasons)) == len(reasons)
    assert all(reason.isupper() and reason.isascii() for reason in reasons)
