"""Adapters on the wire: every field that there is, and ranges that are held."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.message import Message

from loraplex.v1 import adapter_pb2
from loraplex_adapters.errors import InvalidRequestError
from loraplex_adapters.names import AdapterName
from loraplex_adapters.releases import (
    Adapter,
    AdapterEvent,
    EventKind,
    OnExisting,
    Shadow,
    TrafficShare,
    Version,
    VersionState,
)
from loraplex_server.releases.plan import AdapterGroup
from loraplex_server.releases.residency_view import Residency, ResidencyView
from loraplex_server.releases.shadowing import ShadowCounts
from loraplex_server.rpc import adapter_messages as messages

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
VERSION = Version(
    digest="d" * 64,
    size_bytes=123,
    num_elements=61,
    rank=8,
    target_modules=("k_proj", "q_proj"),
    served_module_count=60,
    base_fingerprint="f" * 64,
    template_hash="e" * 64,
    source="https://example.org/faq",
    signer="key 1",
    state=VersionState.DEPRECATED,
    created_at=NOW,
)
ADAPTER = Adapter(
    name=AdapterName("finance", "faq"),
    versions=(VERSION,),
    aliases={"stable": "d" * 64, "canary": "d" * 64},
    traffic=(TrafficShare("stable", 9), TrafficShare("canary", 1)),
    shadow=Shadow("canary", 20),
    is_pinned=True,
    labels={"team": "shop"},
    revision=7,
    created_at=NOW,
    updated_at=NOW,
)


def unset_fields(message: Message) -> list[str]:
    filled = {field.name for field, _ in message.ListFields()}
    return [field.name for field in message.DESCRIPTOR.fields if field.name not in filled]


def test_an_adapter_is_shown_with_every_field_filled() -> None:
    message = messages.adapter_message(ADAPTER, ResidencyView(), ShadowCounts(5, 4, 1))

    assert unset_fields(message) == []
    assert message.name == "tenants/finance/adapters/faq"
    assert unset_fields(message.shadow) == []
    assert message.etag == "7"
    assert dict(message.aliases) == dict(ADAPTER.aliases)
    assert message.create_time.ToDatetime(UTC) == NOW


def test_a_version_is_shown_with_every_field_filled() -> None:
    message = messages.version_message(VERSION, Residency("slot", 0.5, 0.25, NOW))

    assert unset_fields(message) == []
    assert unset_fields(message.residency) == []
    assert message.state == adapter_pb2.Version.STATE_DEPRECATED
    assert list(message.target_modules) == ["k_proj", "q_proj"]


def test_an_event_is_shown_with_every_field_filled() -> None:
    event = AdapterEvent(9, EventKind.PROMOTED, ADAPTER.name, "d" * 64, ("stable", "canary"), NOW)

    message = messages.event_message(event)

    assert unset_fields(message) == unset_fields(message.event) == []
    assert message.resume_token == "9"
    assert (message.event.alias, list(message.event.aliases)) == ("stable", ["stable", "canary"])


@pytest.mark.parametrize(
    ("values", "table"),
    [
        (set(VersionState), messages._STATES),
        (set(EventKind), messages._KINDS),
        ({"disk", "host", "slot"}, messages._TIERS),
        (set(adapter_pb2.ExistingAdapter.values()), messages._ON_EXISTING),
    ],
)
def test_every_value_has_its_counterpart(values: set[Any], table: dict[Any, Any]) -> None:
    assert set(table) == values


def registration(**fields: Any) -> adapter_pb2.Registration:
    return adapter_pb2.Registration(**{"name": "faq", **fields})


def test_a_registration_arrives_whole() -> None:
    request = messages.registration_request(
        registration(
            name="tenants/finance/adapters/faq",
            on_existing=adapter_pb2.EXISTING_ADAPTER_PROMOTE,
            alias="canary",
            labels={"team": "shop"},
            expected_digest="sha256:" + "AB" * 32,
            validate_only=True,
            request_id="mine",
        ),
        "upload",
    )

    assert (request.name, request.on_existing, request.alias) == (ADAPTER.name, OnExisting.PROMOTE, "canary")
    assert (request.labels, request.validate_only, request.source) == ({"team": "shop"}, True, "upload")
    assert request.expected_digest == "ab" * 32
    assert request.once is not None
    assert request.once.request_id == "mine"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "../x"}, "registration.name"),
        ({"alias": "No"}, "registration.alias"),
        ({"on_existing": 99}, "registration.on_existing"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "\n"}, "request_id"),
        ({"expected_digest": "xyz"}, "registration.expected_digest"),
        ({"expected_digest": "0" * 63}, "registration.expected_digest"),
        ({"labels": {"k" * 64: "v"}}, "registration.labels"),
        ({"labels": {"": "v"}}, "registration.labels"),
        ({"labels": {"k": "v" * 256}}, "registration.labels"),
        ({"labels": {f"k{i}": "v" for i in range(33)}}, "registration.labels"),
    ],
)
def test_a_registration_out_of_range_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        messages.registration_request(registration(**fields), "upload")
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("sent", ["AB" * 32, "sha256:" + "ab" * 32])
def test_a_proof_of_what_was_received_is_a_digest(sent: str) -> None:
    header = adapter_pb2.UploadAdapterRequest.Header(upload_id="ci", received_sha256={"a": sent})
    request = messages.registration_request(registration(), "upload")

    assert messages.upload_claim(header, request).received_sha256 == {"a": "ab" * 32}
    header.received_sha256["a"] = "xyz"
    with pytest.raises(InvalidRequestError, match="received_sha256: must be a digest of 64 hex digits"):
        messages.upload_claim(header, request)


def test_a_repetition_is_the_same_content_but_for_its_id() -> None:
    def once(**fields: Any) -> object:
        return messages.once(adapter_pb2.PromoteVersionRequest(name="faq", request_id="a", **fields))

    assert once(version="canary") == once(version="canary")
    assert once(version="canary") != once(version="stable")
    assert messages.content_hash(adapter_pb2.DeleteAdapterRequest(name="faq")) != messages.content_hash(
        adapter_pb2.PinAdapterRequest(name="faq")
    )
    assert messages.once(adapter_pb2.PromoteVersionRequest(name="faq")) is None


def test_page_tokens_lead_back_to_their_names() -> None:
    assert messages.name_before_page(messages.page_token(ADAPTER.name)) == ADAPTER.name
    assert messages.name_before_page("") is None
    for token in ("x", "%%%", "bm90IG91cnM="):
        with pytest.raises(InvalidRequestError, match="page_token"):
            messages.name_before_page(token)


def test_a_watch_begins_now_or_at_its_token() -> None:
    assert messages.resume_revision("", newest=5) == 5
    assert messages.resume_revision("3", newest=5) == 3
    for token in ("-1", "x", "1" * 19, "٣"):
        with pytest.raises(InvalidRequestError, match="resume_token"):
            messages.resume_revision(token, newest=5)


def test_a_scope_is_everything_a_tenant_or_an_adapter() -> None:
    assert messages.scope("") == (None, None)
    assert messages.scope("tenants/finance") == ("finance", None)
    assert messages.scope("finance/faq") == (None, ADAPTER.name)
    assert messages.scope("tenants/finance/adapters/faq") == (None, ADAPTER.name)


def test_a_plans_groups_are_checked_all_at_once() -> None:
    group = adapter_pb2.PlanAdaptersRequest.Group

    assert messages.plan_groups([group(count=2, rank=8, target_modules=["q_proj"])], 64) == [
        AdapterGroup(2, 8, ("q_proj",))
    ]
    assert len(messages.plan_groups([group(count=1, rank=8)], 64)[0].target_modules) == 7
    with pytest.raises(InvalidRequestError) as caught:
        messages.plan_groups([group(count=0, rank=65, target_modules=["lm_head"])], 64)
    assert [violation.field for violation in caught.value.violations] == [
        "groups[0].count",
        "groups[0].rank",
        "groups[0].target_modules",
    ]
    with pytest.raises(InvalidRequestError, match="groups"):
        messages.plan_groups([], 64)
