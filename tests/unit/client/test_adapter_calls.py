from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from loraplex.v1 import adapter_pb2
from loraplex_client import (
    Adapter,
    AsyncLoraplexClient,
    ConflictError,
    LoraplexClient,
    OnExisting,
    PlannedAdapters,
    Tier,
    VersionState,
    adapter_decode,
)
from loraplex_client.names import short_name
from tests.unit.client.faults import Fault, error_info
from tests.unit.client.scripted_adapters import CANARY_DIGEST, STABLE_DIGEST, adapter
from tests.unit.client.scripted_server import ScriptedServer

CHANGES: dict[str, tuple[Callable[[Any], Any], Message]] = {
    "update_labels": (
        lambda calls: calls.update_labels("shop", {"a": "b"}, etag="7", request_id="r"),
        adapter_pb2.UpdateAdapterRequest(name="shop", labels={"a": "b"}, etag="7", request_id="r"),
    ),
    "promote": (
        lambda calls: calls.promote("shop", "canary", etag="7", request_id="r"),
        adapter_pb2.PromoteVersionRequest(name="shop", version="canary", etag="7", request_id="r"),
    ),
    "rollback": (
        lambda calls: calls.rollback("shop", "canary", etag="7", request_id="r"),
        adapter_pb2.RollbackAliasRequest(name="shop", alias="canary", etag="7", request_id="r"),
    ),
    "delete_alias": (
        lambda calls: calls.delete_alias("shop", "canary", etag="7", request_id="r"),
        adapter_pb2.DeleteAliasRequest(name="shop", alias="canary", etag="7", request_id="r"),
    ),
    "split": (
        lambda calls: calls.split("shop", {"stable": 9, "canary": 1}, etag="7", request_id="r"),
        adapter_pb2.SplitTrafficRequest(
            name="shop",
            traffic=[
                adapter_pb2.TrafficShare(target="stable", weight=9),
                adapter_pb2.TrafficShare(target="canary", weight=1),
            ],
            etag="7",
            request_id="r",
        ),
    ),
    "set_shadow": (
        lambda calls: calls.set_shadow("shop", "canary", 5, etag="7", request_id="r"),
        adapter_pb2.SetShadowRequest(name="shop", target="canary", percent=5, etag="7", request_id="r"),
    ),
    "pin": (
        lambda calls: calls.pin("shop", etag="7", request_id="r"),
        adapter_pb2.PinAdapterRequest(name="shop", pinned=True, etag="7", request_id="r"),
    ),
    "unpin": (
        lambda calls: calls.unpin("shop", etag="7", request_id="r"),
        adapter_pb2.PinAdapterRequest(name="shop", pinned=False, etag="7", request_id="r"),
    ),
    "deprecate": (
        lambda calls: calls.deprecate("shop", "a" * 12, undo=True, etag="7", request_id="r"),
        adapter_pb2.DeprecateVersionRequest(
            name="shop", version="a" * 12, undo=True, etag="7", request_id="r"
        ),
    ),
    "delete_version": (
        lambda calls: calls.delete_version("shop", "a" * 12, etag="7", request_id="r"),
        adapter_pb2.DeleteVersionRequest(name="shop", version="a" * 12, etag="7", request_id="r"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_says_the_same_from_both_clients_and_returns_the_adapter(
    name: str, client: LoraplexClient, server: ScriptedServer
) -> None:
    call, request = CHANGES[name]

    changed = call(client.adapters)
    async with AsyncLoraplexClient(server.target) as async_client:
        changed_async = await call(async_client.adapters)

    assert server.adapters.requests == [request, request]
    assert changed == changed_async == adapter_decode.adapter(adapter())


def test_a_change_that_is_sent_again_has_the_id_of_the_first_time(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    server.faults = [Fault(grpc.StatusCode.UNAVAILABLE, details=(error_info("STORAGE_UNAVAILABLE"),))]

    client.adapters.promote("shop", "canary")
    client.adapters.promote("shop", "canary")

    first, again, other = (request.request_id for request in server.adapters.requests)  # type: ignore[attr-defined]
    assert first == again
    assert first
    assert other not in ("", first)


def test_every_call_that_changes_something_draws_an_id(
    client: LoraplexClient, server: ScriptedServer
) -> None:
    client.adapters.create("shop", "/shop")
    client.adapters.delete("shop")
    for name in CHANGES:
        method = getattr(client.adapters, name)
        given: dict[str, Any] = {"name": "shop", "version": "a" * 12, "alias": "x", "target": "x"}
        given |= {"labels": {}, "traffic": {}}
        wanted = [word for word in inspect.signature(method).parameters if word in given]
        method(**{word: given[word] for word in wanted})

    ids = [
        request.registration.request_id if hasattr(request, "registration") else request.request_id  # type: ignore[attr-defined]
        for request in server.adapters.requests
    ]
    assert all(ids)
    assert len(set(ids)) == len(ids) == len(CHANGES) + 2


def test_a_registration_reaches_the_wire_whole(client: LoraplexClient, server: ScriptedServer) -> None:
    made = client.adapters.create(
        "shop",
        url="s3://bucket/shop",
        on_existing=OnExisting.PROMOTE,
        alias="canary",
        labels={"a": "b"},
        expected_digest="d",
        validate_only=True,
        request_id="r",
    )

    request = server.adapters.request(adapter_pb2.CreateAdapterRequest)
    assert request.url == "s3://bucket/shop"
    assert request.registration == adapter_pb2.Registration(
        name="shop",
        on_existing=adapter_pb2.EXISTING_ADAPTER_PROMOTE,
        alias="canary",
        labels={"a": "b"},
        expected_digest="d",
        validate_only=True,
        request_id="r",
    )
    version = made.version
    assert (made.name, made.digest, made.state) == ("shop", version.digest, VersionState.READY)
    assert (made.size_bytes, made.served_module_count) == (3 * 2**20, 8)
    assert made.target_modules == ("k_proj", "q_proj")
    assert made.is_resident
    assert (made.base_fingerprint, made.create_time) == (version.base_fingerprint, version.create_time)


@pytest.mark.parametrize("source", [{}, {"path": "/a", "url": "s3://a"}], ids=str)
def test_a_registration_needs_exactly_one_source(client: LoraplexClient, source: Any) -> None:
    with pytest.raises(TypeError, match="exactly one"):
        client.adapters.create("shop", **source)


def test_a_misspelt_option_of_an_adapter_call_is_refused_by_name(client: LoraplexClient) -> None:
    options: Any = {"etagg": "7"}

    with pytest.raises(TypeError, match="etagg"):
        client.adapters.pin("shop", **options)
    with pytest.raises(TypeError, match="etagg"):
        client.adapters.create("shop", "/shop", **options)
    with pytest.raises(ValueError, match="replace"):
        client.adapters.create("shop", "/shop", on_existing="replace")


def test_an_old_etag_is_a_conflict(client: LoraplexClient, server: ScriptedServer) -> None:
    server.faults = [Fault(grpc.StatusCode.ABORTED, details=(error_info("ETAG_MISMATCH"),))]

    with pytest.raises(ConflictError):
        client.adapters.promote("shop", "canary", etag="1")
    assert server.num_calls == 1


def shop() -> Adapter:
    return adapter_decode.adapter(adapter())


def test_an_adapter_is_decoded_with_its_versions(client: LoraplexClient) -> None:
    found = client.adapters.get("shop")

    assert (found.name, found.resource_name) == ("shop", "tenants/default/adapters/shop")
    assert [version.digest for version in found.versions] == [CANARY_DIGEST, STABLE_DIGEST]
    assert found.stable.digest == found.digest == STABLE_DIGEST
    assert [(share.target, share.weight) for share in found.traffic] == [("stable", 90), ("canary", 10)]
    assert found.shadow is not None
    assert (found.shadow.compared, found.shadow.equal, found.shadow.dropped) == (7, 6, 1)
    assert (found.pinned, found.labels, found.etag) == (True, {"team": "search"}, "17")
    canary, stable = (version.residency for version in found.versions)
    assert (canary.tier, canary.activate_time) == (Tier.DISK, None)
    assert (stable.tier, stable.read_seconds, stable.copy_seconds) == (Tier.SLOT, 0.25, 0.125)
    assert stable.activate_time == found.create_time


def test_a_version_is_found_by_alias_and_by_digest() -> None:
    for target in ("canary", CANARY_DIGEST, CANARY_DIGEST[:12], f"sha256:{CANARY_DIGEST}"):
        assert shop().version(target).digest == CANARY_DIGEST


@pytest.mark.parametrize("target", ["nobody", CANARY_DIGEST[:11], "c" * 64, ""])
def test_what_names_no_version_is_not_found(target: str) -> None:
    with pytest.raises(KeyError):
        shop().version(target)


def test_what_a_newer_server_says_is_unknown_and_no_failure() -> None:
    newer = adapter_pb2.Version(state=99, residency=adapter_pb2.Residency(tier=99))  # type: ignore[arg-type]

    version = adapter_decode.version(newer)

    assert (version.state, version.residency.tier) == (VersionState.UNKNOWN, Tier.UNKNOWN)
    assert not version.is_resident


def test_a_list_is_continued_over_all_pages(client: LoraplexClient, server: ScriptedServer) -> None:
    server.adapters.num_listed = 7

    found = client.adapters.list(page_size=3, parent="tenants/default", filter="pinned = true")

    assert [each.name for each in found] == [f"a{index}" for index in range(7)]
    assert [(request.parent, request.filter) for request in server.adapters.requests] == [  # type: ignore[attr-defined]
        ("tenants/default", "pinned = true")
    ] * 3


async def test_the_async_list_is_continued_over_all_pages(server: ScriptedServer) -> None:
    server.adapters.num_listed = 7
    async with AsyncLoraplexClient(server.target) as client:
        names = [each.name async for each in client.adapters.list(page_size=3)]

    assert names == [f"a{index}" for index in range(7)]


async def test_both_clients_warm_and_plan_alike(client: LoraplexClient, server: ScriptedServer) -> None:
    groups = [PlannedAdapters(16, 100), PlannedAdapters(64, target_modules=("q_proj",))]

    warm, plan = client.adapters.warm("shop@canary"), client.adapters.plan(groups)
    async with AsyncLoraplexClient(server.target) as async_client:
        assert await async_client.adapters.warm("shop@canary") == warm
        assert await async_client.adapters.plan(groups) == plan

    assert warm[0].is_resident
    assert (plan.resident_together, plan.all_resident, plan.load_seconds) == (8, False, 0.5)
    asked = server.adapters.requests[-1]
    assert [(g.rank, g.count, list(g.target_modules)) for g in asked.groups] == [  # type: ignore[attr-defined]
        (16, 100, []),
        (64, 1, ["q_proj"]),
    ]


@pytest.mark.parametrize(
    ("resource", "name"),
    [
        ("tenants/default/adapters/shop", "shop"),
        ("tenants/finance/adapters/faq", "finance/faq"),
        ("something/else", "something/else"),
    ],
)
def test_a_resource_name_is_shortened(resource: str, name: str) -> None:
    assert short_name(resource) == name
