"""Calls of AdapterService, synchronous."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack

import grpc

from loraplex.v1 import adapter_pb2, adapter_pb2_grpc
from loraplex_client import adapter_decode as decode
from loraplex_client.adapter_requests import (
    ChangeOptions,
    RegisterOptions,
    change,
    create_request,
    plan_request,
    registration,
    split_request,
)
from loraplex_client.adapter_results import (
    Adapter,
    AdapterPlan,
    PlannedAdapters,
    RegisteredVersion,
    Version,
)
from loraplex_client.calls import call, or_default
from loraplex_client.errors import NotFoundError, api_error
from loraplex_client.upload import Upload, UploadProgress
from loraplex_client.watch import DEFAULT_PATIENCE_S, AdapterWatch, WatchPosition

_Response = TypeVar("_Response")


class AdapterCalls:
    """AdapterService; reached as `client.adapters`.

    Adapters are named NAME, TENANT/NAME or tenants/TENANT/adapters/NAME; versions by 12 or more digits of their digest.
    A change that is sent again with the same `request_id` happens once; one is drawn where it is left out.
    """

    def __init__(self, channel: grpc.Channel, timeout_s: float | None) -> None:
        self._channel = channel
        self._stub = adapter_pb2_grpc.AdapterServiceStub(channel)
        self._timeout_s = timeout_s

    def create(
        self,
        name: str,
        path: Path | str | None = None,
        *,
        url: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> RegisteredVersion:
        """Register what the server reads itself: a folder of its machine under one of its adapter_roots, or a URL."""
        request = create_request(name, path, url, options)
        return decode.registered(self._call(self._stub.CreateAdapter, request, timeout_s))

    def upload(
        self,
        name: str,
        folder: Path | str,
        *,
        upload_id: str | None = None,
        on_progress: UploadProgress | None = None,
        timeout_s: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> RegisteredVersion:
        """Register a PEFT folder of this machine. Raises FileNotFoundError if it is none.

        If the way breaks off, it is gone on with from what the server has, as long as `timeout_s` allows. `upload_id`
        None draws one; that of an earlier process goes on with its upload, if it was of these files: of others of this
        adapter it starts over, for another adapter it is a PreconditionError. "" gives a broken upload up.
        """
        upload = Upload(
            registration(name, options),
            Path(folder),
            upload_id,
            or_default(timeout_s, self._timeout_s),
            on_progress,
        )
        while True:
            try:
                return self._send(upload)
            except grpc.RpcError as error:
                failure = api_error(error)
            pause_s = upload.pause_s(failure)
            if pause_s is None:
                raise failure
            time.sleep(pause_s)

    def get(self, name: str, timeout_s: float | None = None) -> Adapter:
        request = adapter_pb2.GetAdapterRequest(name=name)
        return self._adapter(self._stub.GetAdapter, request, timeout_s)

    def list(
        self,
        page_size: int = 0,
        timeout_s: float | None = None,
        *,
        parent: str = "",
        filter: str = "",
    ) -> Iterator[Adapter]:
        """Adapters in order of name; pages are fetched as they are needed.

        parent  "tenants/TENANT"; empty: of all tenants
        filter  e.g. 'state = FAILED AND labels.team = search'; see ListAdaptersRequest
        """
        token = ""
        while True:
            request = adapter_pb2.ListAdaptersRequest(
                parent=parent, page_size=page_size, page_token=token, filter=filter
            )
            page = self._call(self._stub.ListAdapters, request, timeout_s)
            yield from map(decode.adapter, page.adapters)
            token = page.next_page_token
            if not token:
                return

    def update_labels(
        self, name: str, labels: Mapping[str, str], **options: Unpack[ChangeOptions]
    ) -> Adapter:
        """Replace all labels."""
        request = adapter_pb2.UpdateAdapterRequest(name=name, labels=labels, **change(options))
        return self._adapter(self._stub.UpdateAdapter, request, options.get("timeout_s"))

    def promote(self, name: str, version: str, alias: str = "", **options: Unpack[ChangeOptions]) -> Adapter:
        """Let an alias, left out "stable", point at a version, given by digest or another alias."""
        request = adapter_pb2.PromoteVersionRequest(
            name=name, version=version, alias=alias, **change(options)
        )
        return self._adapter(self._stub.PromoteVersion, request, options.get("timeout_s"))

    def rollback(self, name: str, alias: str = "", **options: Unpack[ChangeOptions]) -> Adapter:
        """Let an alias, left out "stable", point again at the version before."""
        request = adapter_pb2.RollbackAliasRequest(name=name, alias=alias, **change(options))
        return self._adapter(self._stub.RollbackAlias, request, options.get("timeout_s"))

    def delete_alias(self, name: str, alias: str, **options: Unpack[ChangeOptions]) -> Adapter:
        """Remove an alias; its version stays."""
        request = adapter_pb2.DeleteAliasRequest(name=name, alias=alias, **change(options))
        return self._adapter(self._stub.DeleteAlias, request, options.get("timeout_s"))

    def split(self, name: str, traffic: Mapping[str, int], **options: Unpack[ChangeOptions]) -> Adapter:
        """Spread the bare name's requests, e.g. {"stable": 90, "canary": 10}; empty ends the split."""
        request = split_request(name, traffic, options)
        return self._adapter(self._stub.SplitTraffic, request, options.get("timeout_s"))

    def set_shadow(
        self, name: str, target: str, percent: int = 100, **options: Unpack[ChangeOptions]
    ) -> Adapter:
        """Let an alias or digest answer a share of the bare name's requests unseen; an empty one ends that."""
        request = adapter_pb2.SetShadowRequest(name=name, target=target, percent=percent, **change(options))
        return self._adapter(self._stub.SetShadow, request, options.get("timeout_s"))

    def pin(self, name: str, **options: Unpack[ChangeOptions]) -> Adapter:
        """Keep what the bare name serves in adapter slots."""
        request = adapter_pb2.PinAdapterRequest(name=name, pinned=True, **change(options))
        return self._adapter(self._stub.PinAdapter, request, options.get("timeout_s"))

    def unpin(self, name: str, **options: Unpack[ChangeOptions]) -> Adapter:
        """Let it be evicted again."""
        request = adapter_pb2.PinAdapterRequest(name=name, pinned=False, **change(options))
        return self._adapter(self._stub.PinAdapter, request, options.get("timeout_s"))

    def warm(self, adapter: str, timeout_s: float | None = None) -> tuple[Version, ...]:
        """Bring NAME, NAME@ALIAS or NAME@DIGEST into adapter slots; returns when it is there."""
        request = adapter_pb2.WarmVersionRequest(adapter=adapter)
        response = self._call(self._stub.WarmVersion, request, timeout_s)
        return tuple(map(decode.version, response.versions))

    def deprecate(
        self, name: str, version: str, *, undo: bool = False, **options: Unpack[ChangeOptions]
    ) -> Adapter:
        """Mark a version as one to move away from, or take the mark back."""
        request = adapter_pb2.DeprecateVersionRequest(
            name=name, version=version, undo=undo, **change(options)
        )
        return self._adapter(self._stub.DeprecateVersion, request, options.get("timeout_s"))

    def delete_version(self, name: str, version: str, **options: Unpack[ChangeOptions]) -> Adapter:
        """Remove one version, which no alias, split or shadow may name."""
        request = adapter_pb2.DeleteVersionRequest(name=name, version=version, **change(options))
        return self._adapter(self._stub.DeleteVersion, request, options.get("timeout_s"))

    def delete(self, name: str, **options: Unpack[ChangeOptions]) -> None:
        """Remove it with all versions. New requests get NotFoundError at once; running ones finish."""
        request = adapter_pb2.DeleteAdapterRequest(name=name, **change(options))
        self._call(self._stub.DeleteAdapter, request, options.get("timeout_s"))

    def watch(
        self, parent: str = "", resume_token: str = "", *, patience_s: float = DEFAULT_PATIENCE_S
    ) -> AdapterWatch:
        """What changes, as (event, token); without end.

        Goes on by itself from the last event's token where the connection breaks. `parent` is "tenants/TENANT" or an
        adapter's name; empty: everything. `resume_token` empty: from now on; what happens between a break and the next
        connection before the first event is not seen then. "0": from the oldest event kept. Raises EventsExpiredError
        for a token too old, UnavailableError after `patience_s` without a server.
        """
        position = WatchPosition(parent, resume_token, patience_s)
        return AdapterWatch(self._channel, self._stub.WatchAdapters, position)

    def plan(self, groups: Sequence[PlannedAdapters], timeout_s: float | None = None) -> AdapterPlan:
        """Whether adapters fit, how many are resident at once, what they add to a step; loads nothing."""
        return decode.plan(self._call(self._stub.PlanAdapters, plan_request(groups), timeout_s))

    def _send(self, upload: Upload) -> RegisteredVersion:
        if upload.must_ask:
            upload.go_on_from(self._received(upload))
        return decode.registered(self._stub.UploadAdapter(upload.messages(), timeout=upload.timeout_s))

    def _received(self, upload: Upload) -> Mapping[str, int]:
        try:
            return self._stub.GetUpload(upload.state_request, timeout=upload.timeout_s).received_bytes
        except grpc.RpcError as error:
            if isinstance(api_error(error), NotFoundError):
                return {}
            raise

    def _adapter(self, method: Callable[..., Any], request: object, timeout_s: float | None) -> Adapter:
        return decode.adapter(self._call(method, request, timeout_s).adapter)

    def _call(self, method: Callable[..., _Response], request: object, timeout_s: float | None) -> _Response:
        return call(method, request, or_default(timeout_s, self._timeout_s))
