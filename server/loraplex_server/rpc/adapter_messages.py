"""Between protobuf and the types of adapter releases; documented ranges are checked here."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from loraplex.v1 import adapter_pb2
from loraplex_adapters.base_spec import LORA_MODULES
from loraplex_adapters.errors import FieldViolation, InvalidRequestError, invalid
from loraplex_adapters.names import AdapterName, parse_alias, parse_target, parse_tenant, parse_whole_digest
from loraplex_adapters.registry import Once
from loraplex_adapters.release_changes import check_labels
from loraplex_adapters.releases import (
    Adapter,
    AdapterEvent,
    EventKind,
    OnExisting,
    TrafficShare,
    Version,
    VersionState,
)
from loraplex_server.admission.upload import UploadClaim
from loraplex_server.releases.plan import AdapterGroup, AdapterPlan
from loraplex_server.releases.registration import RegistrationRequest
from loraplex_server.releases.residency_view import Residency, ResidencyView
from loraplex_server.releases.shadowing import ShadowCounts

MAX_REQUEST_ID_CHARACTERS = 128
_PAGE_TOKEN_PREFIX = b"adapters:"
_STATES = {
    VersionState.READY: adapter_pb2.Version.STATE_READY,
    VersionState.DEPRECATED: adapter_pb2.Version.STATE_DEPRECATED,
    VersionState.FAILED: adapter_pb2.Version.STATE_FAILED,
}
_TIERS = {
    "disk": adapter_pb2.Residency.TIER_DISK,
    "host": adapter_pb2.Residency.TIER_HOST,
    "slot": adapter_pb2.Residency.TIER_SLOT,
}
_ON_EXISTING = {
    adapter_pb2.EXISTING_ADAPTER_UNSPECIFIED: OnExisting.REFUSE,
    adapter_pb2.EXISTING_ADAPTER_REFUSE: OnExisting.REFUSE,
    adapter_pb2.EXISTING_ADAPTER_ADD_VERSION: OnExisting.ADD_VERSION,
    adapter_pb2.EXISTING_ADAPTER_PROMOTE: OnExisting.PROMOTE,
}
_KINDS = {kind: adapter_pb2.AdapterEvent.Kind.Value(f"KIND_{kind.name}") for kind in EventKind}
_MAX_GROUPS, _MAX_GROUP_COUNT = 32, 1_000_000


def once(request: Any) -> Once | None:
    """The idempotency of a request that changes something. Raises InvalidRequestError."""
    request_id: str = request.request_id
    if not request_id:
        return None
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS or not all(32 <= ord(c) < 127 for c in request_id):
        raise invalid(
            "request_id", f"must be at most {MAX_REQUEST_ID_CHARACTERS} characters of printable ASCII"
        )
    return Once(request_id, content_hash(request))


def content_hash(request: Any) -> str:
    """Of everything in a request but its id."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("request_id")
    content: bytes = copy.SerializeToString(deterministic=True)
    return hashlib.sha256(type(request).DESCRIPTOR.full_name.encode() + b"\0" + content).hexdigest()


def registration_request(message: adapter_pb2.Registration, source: str) -> RegistrationRequest:
    """Raises InvalidRequestError."""
    if message.on_existing not in _ON_EXISTING:
        raise invalid("registration.on_existing", "is not a value of ExistingAdapter")
    check_labels(message.labels, "registration.labels")
    return RegistrationRequest(
        name=AdapterName.parse(message.name, "registration.name"),
        on_existing=_ON_EXISTING[message.on_existing],
        alias=parse_alias(message.alias, "registration.alias") if message.alias else "",
        labels=dict(message.labels),
        expected_digest=parse_whole_digest(message.expected_digest, "registration.expected_digest")
        if message.expected_digest
        else "",
        validate_only=message.validate_only,
        source=source,
        once=once(message),
    )


def upload_claim(
    header: adapter_pb2.UploadAdapterRequest.Header, registration: RegistrationRequest
) -> UploadClaim:
    """What a header says of bytes that earlier calls sent. Raises InvalidRequestError."""
    return UploadClaim(
        upload_id=header.upload_id,
        adapter=registration.name,
        received_sha256={
            name: parse_whole_digest(text, "received_sha256") for name, text in header.received_sha256.items()
        },
        has_digest=bool(registration.expected_digest),
        starts_over=header.start_over,
    )


def traffic_shares(messages: Iterable[adapter_pb2.TrafficShare]) -> list[TrafficShare]:
    """Raises InvalidRequestError where a target can be none; the registry checks the rest."""
    return [
        TrafficShare(parse_target(message.target, f"traffic[{index}].target"), message.weight)
        for index, message in enumerate(messages)
    ]


def scope(parent: str) -> tuple[str | None, AdapterName | None]:
    """(tenant, adapter) that "tenants/T" or an adapter's name selects; (None, None): everything."""
    if not parent:
        return None, None
    if parent.startswith("tenants/") and parent.count("/") == 1:
        return parse_tenant(parent), None
    return None, AdapterName.parse(parent, "parent")


def page_token(name: AdapterName) -> str:
    """Stands for the page behind `name`."""
    return base64.urlsafe_b64encode(_PAGE_TOKEN_PREFIX + name.resource.encode()).decode()


def name_before_page(token: str) -> AdapterName | None:
    """The name behind which a page begins; None for the first. Raises InvalidRequestError."""
    if not token:
        return None
    try:
        raw = base64.urlsafe_b64decode(token.encode("ascii"))
        if raw.startswith(_PAGE_TOKEN_PREFIX):
            return AdapterName.parse(raw.removeprefix(_PAGE_TOKEN_PREFIX).decode())
    except (binascii.Error, UnicodeError, ValueError, InvalidRequestError):
        pass  # answered below like any other token that is not ours
    raise invalid("page_token", "is not a token that this server gave out")


def resume_revision(token: str, newest: int) -> int:
    """Behind which revision a watch begins. Raises InvalidRequestError."""
    if not token:
        return newest
    if not token.isascii() or not token.isdigit() or len(token) > 18:
        raise invalid("resume_token", "is not a token that a watch gave out")
    return int(token)


def plan_groups(
    messages: Iterable[adapter_pb2.PlanAdaptersRequest.Group], max_rank: int
) -> list[AdapterGroup]:
    """Raises InvalidRequestError listing every violation."""
    groups = []
    violations = []
    for index, message in enumerate(messages):
        modules = tuple(dict.fromkeys(message.target_modules)) or LORA_MODULES
        at = f"groups[{index}]"
        if not 1 <= message.count <= _MAX_GROUP_COUNT:
            violations.append(FieldViolation(f"{at}.count", f"must be in [1, {_MAX_GROUP_COUNT}]"))
        if not 1 <= message.rank <= max_rank:
            violations.append(FieldViolation(f"{at}.rank", f"must be in [1, {max_rank}]"))
        if not set(modules) <= set(LORA_MODULES):
            violations.append(FieldViolation(f"{at}.target_modules", f"must be of {', '.join(LORA_MODULES)}"))
        groups.append(AdapterGroup(message.count, message.rank, modules))
    if not 1 <= len(groups) <= _MAX_GROUPS:
        violations.append(FieldViolation("groups", f"must have 1 to {_MAX_GROUPS} entries"))
    if violations:
        raise InvalidRequestError(violations[:16])
    return groups


def plan_message(
    plan: AdapterPlan, *, arena_bytes: int, adapter_slots: int, host_cache_bytes: int, load_s: float
) -> adapter_pb2.PlanAdaptersResponse:
    """A plan and what it was made with."""
    return adapter_pb2.PlanAdaptersResponse(
        groups=[
            adapter_pb2.PlanAdaptersResponse.Group(
                bytes_each=group.bytes_each,
                resident_alone=group.resident_alone,
                fits=group.fits,
                step_bytes_share=group.step_bytes_share,
            )
            for group in plan.groups
        ],
        resident_together=plan.resident_together,
        all_resident=plan.all_resident,
        arena_bytes=arena_bytes,
        adapter_slots=adapter_slots,
        host_cache_bytes=host_cache_bytes,
        load_seconds=load_s,
    )


def adapter_message(adapter: Adapter, view: ResidencyView, shadows: ShadowCounts) -> adapter_pb2.Adapter:
    """An adapter with its versions."""
    message = adapter_pb2.Adapter(
        name=adapter.name.resource,
        digest=adapter.stable.digest,
        versions=[version_message(version, view.of(version.digest)) for version in adapter.versions],
        aliases=_plain(adapter.aliases),
        traffic=[adapter_pb2.TrafficShare(target=s.target, weight=s.weight) for s in adapter.traffic],
        pinned=adapter.is_pinned,
        labels=_plain(adapter.labels),
        etag=str(adapter.revision) if adapter.revision else "",
    )
    if adapter.shadow is not None:
        message.shadow.CopyFrom(
            adapter_pb2.Shadow(
                target=adapter.shadow.target,
                percent=adapter.shadow.percent,
                compared=shadows.compared,
                equal=shadows.equal,
                dropped=shadows.dropped,
            )
        )
    message.create_time.FromDatetime(adapter.created_at)
    message.update_time.FromDatetime(adapter.updated_at)
    return message


def version_message(version: Version, residency: Residency) -> adapter_pb2.Version:
    """A version and where its weights are."""
    message = adapter_pb2.Version(
        digest=version.digest,
        state=_STATES[version.state],
        size_bytes=version.size_bytes,
        rank=version.rank,
        target_modules=version.target_modules,
        served_module_count=version.served_module_count,
        base_fingerprint=version.base_fingerprint,
        template_hash=version.template_hash,
        source=version.source,
        signer=version.signer,
        residency=adapter_pb2.Residency(
            tier=_TIERS[residency.tier], read_seconds=residency.read_s, copy_seconds=residency.copy_s
        ),
    )
    message.create_time.FromDatetime(version.created_at)
    if residency.activated_at is not None:
        message.residency.activate_time.FromDatetime(residency.activated_at)
    return message


def event_message(event: AdapterEvent) -> adapter_pb2.WatchAdaptersResponse:
    """A change and the token behind it."""
    message = adapter_pb2.AdapterEvent(
        kind=_KINDS[event.kind],
        name=event.name.resource,
        digest=event.digest,
        alias=event.aliases[0] if event.aliases else "",
        aliases=event.aliases,
    )
    message.time.FromDatetime(event.at)
    return adapter_pb2.WatchAdaptersResponse(event=message, resume_token=str(event.revision))


def _plain(mapping: Mapping[str, str]) -> dict[str, str]:
    return dict(mapping)
