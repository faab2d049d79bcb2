"""Friendly arguments -> requests of AdapterService. A change gets an id of its own, so that it can be sent again."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypedDict

from loraplex.v1 import adapter_pb2
from loraplex_client.adapter_results import PlannedAdapters


class OnExisting(StrEnum):
    """What a registration does where the name is in use by other weights."""

    REFUSE = "refuse"  # AlreadyExistsError
    ADD_VERSION = "add_version"  # only its digest, and `alias` if given, name it
    PROMOTE = "promote"  # it becomes "stable"


class RegisterOptions(TypedDict, total=False):
    """Keywords of `create` and `upload`. docs: Registration in proto/loraplex/v1/adapter.proto."""

    on_existing: OnExisting | str  # default "refuse"
    alias: str  # that shall point at the version too, e.g. "canary"
    labels: Mapping[str, str]  # of a new adapter
    expected_digest: str  # SHA-256 that the package must have
    validate_only: bool  # prove everything, store nothing
    request_id: str  # default: drawn


class ChangeOptions(TypedDict, total=False):
    """Keywords of calls that change an adapter."""

    etag: str  # of the adapter as last read; ConflictError if it has changed since. Left out: not checked
    request_id: str  # default: drawn
    timeout_s: float | None


_ON_EXISTING = {
    OnExisting.REFUSE: adapter_pb2.EXISTING_ADAPTER_REFUSE,
    OnExisting.ADD_VERSION: adapter_pb2.EXISTING_ADAPTER_ADD_VERSION,
    OnExisting.PROMOTE: adapter_pb2.EXISTING_ADAPTER_PROMOTE,
}


def drawn_id() -> str:
    """An id that no other call has."""
    return uuid.uuid4().hex


def change(options: ChangeOptions) -> dict[str, str]:
    """Fields that every request of a change has. Raises TypeError for an unknown option."""
    _check_known(options, ChangeOptions)
    return {"etag": options.get("etag", ""), "request_id": options.get("request_id") or drawn_id()}


def registration(name: str, options: RegisterOptions) -> adapter_pb2.Registration:
    """Raises TypeError for an unknown option, ValueError for an unknown on_existing."""
    _check_known(options, RegisterOptions)
    return adapter_pb2.Registration(
        name=name,
        on_existing=_ON_EXISTING[OnExisting(options.get("on_existing", OnExisting.REFUSE))],
        alias=options.get("alias", ""),
        labels=options.get("labels", {}),
        expected_digest=options.get("expected_digest", ""),
        validate_only=options.get("validate_only", False),
        request_id=options.get("request_id") or drawn_id(),
    )


def create_request(
    name: str, path: Path | str | None, url: str | None, options: RegisterOptions
) -> adapter_pb2.CreateAdapterRequest:
    """Raises TypeError unless exactly one of path and url is given."""
    if (path is None) == (url is None):
        raise TypeError("give exactly one of path, url")
    return adapter_pb2.CreateAdapterRequest(
        registration=registration(name, options),
        path=None if path is None else str(path),  # type: ignore[arg-type]  # None leaves it unset
        url=url,  # type: ignore[arg-type]
    )


def split_request(
    name: str, traffic: Mapping[str, int], options: ChangeOptions
) -> adapter_pb2.SplitTrafficRequest:
    return adapter_pb2.SplitTrafficRequest(
        name=name,
        traffic=[
            adapter_pb2.TrafficShare(target=target, weight=weight) for target, weight in traffic.items()
        ],
        **change(options),
    )


def plan_request(groups: Iterable[PlannedAdapters]) -> adapter_pb2.PlanAdaptersRequest:
    return adapter_pb2.PlanAdaptersRequest(
        groups=[
            adapter_pb2.PlanAdaptersRequest.Group(
                count=group.count, rank=group.rank, target_modules=group.target_modules
            )
            for group in groups
        ]
    )


def _check_known(options: Mapping[str, object], kind: type) -> None:
    unknown = sorted(set(options) - kind.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown options {', '.join(unknown)}")
