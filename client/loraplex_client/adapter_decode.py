"""Protobuf messages of AdapterService -> the records of `adapter_results`."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from loraplex.v1 import adapter_pb2
from loraplex_client.adapter_results import (
    Adapter,
    AdapterEvent,
    AdapterEventKind,
    AdapterPlan,
    PlanGroup,
    RegisteredVersion,
    Residency,
    Shadow,
    Tier,
    TrafficShare,
    Version,
    VersionState,
)

_STATES = {
    adapter_pb2.Version.STATE_READY: VersionState.READY,
    adapter_pb2.Version.STATE_DEPRECATED: VersionState.DEPRECATED,
    adapter_pb2.Version.STATE_FAILED: VersionState.FAILED,
}
_TIERS = {
    adapter_pb2.Residency.TIER_DISK: Tier.DISK,
    adapter_pb2.Residency.TIER_HOST: Tier.HOST,
    adapter_pb2.Residency.TIER_SLOT: Tier.SLOT,
}
_KINDS = {
    adapter_pb2.AdapterEvent.KIND_REGISTERED: AdapterEventKind.REGISTERED,
    adapter_pb2.AdapterEvent.KIND_PROMOTED: AdapterEventKind.PROMOTED,
    adapter_pb2.AdapterEvent.KIND_ROLLED_BACK: AdapterEventKind.ROLLED_BACK,
    adapter_pb2.AdapterEvent.KIND_UPDATED: AdapterEventKind.UPDATED,
    adapter_pb2.AdapterEvent.KIND_DEPRECATED: AdapterEventKind.DEPRECATED,
    adapter_pb2.AdapterEvent.KIND_FAILED: AdapterEventKind.FAILED,
    adapter_pb2.AdapterEvent.KIND_VERSION_DELETED: AdapterEventKind.VERSION_DELETED,
    adapter_pb2.AdapterEvent.KIND_DELETED: AdapterEventKind.DELETED,
}


def adapter(message: adapter_pb2.Adapter) -> Adapter:
    return Adapter(
        resource_name=message.name,
        digest=message.digest,
        versions=tuple(map(version, message.versions)),
        aliases=dict(sorted(message.aliases.items())),
        traffic=tuple(TrafficShare(share.target, share.weight) for share in message.traffic),
        shadow=_shadow(message.shadow) if message.HasField("shadow") else None,
        pinned=message.pinned,
        labels=dict(sorted(message.labels.items())),
        etag=message.etag,
        create_time=_time(message.create_time),
        update_time=_time(message.update_time),
    )


def version(message: adapter_pb2.Version) -> Version:
    return Version(
        digest=message.digest,
        state=_STATES.get(message.state, VersionState.UNKNOWN),
        size_bytes=message.size_bytes,
        rank=message.rank,
        target_modules=tuple(message.target_modules),
        served_module_count=message.served_module_count,
        base_fingerprint=message.base_fingerprint,
        template_hash=message.template_hash,
        source=message.source,
        signer=message.signer,
        create_time=_time(message.create_time),
        residency=_residency(message.residency),
    )


def registered(
    message: adapter_pb2.CreateAdapterResponse | adapter_pb2.UploadAdapterResponse,
) -> RegisteredVersion:
    return RegisteredVersion(adapter(message.adapter), version(message.version))


def event(message: adapter_pb2.AdapterEvent) -> AdapterEvent:
    return AdapterEvent(
        kind=_KINDS.get(message.kind, AdapterEventKind.UNKNOWN),
        resource_name=message.name,
        digest=message.digest,
        alias=message.alias,
        aliases=tuple(message.aliases) or tuple(filter(None, [message.alias])),
        time=_time(message.time),
    )


def plan(message: adapter_pb2.PlanAdaptersResponse) -> AdapterPlan:
    return AdapterPlan(
        groups=tuple(
            PlanGroup(group.bytes_each, group.resident_alone, group.fits, group.step_bytes_share)
            for group in message.groups
        ),
        resident_together=message.resident_together,
        all_resident=message.all_resident,
        arena_bytes=message.arena_bytes,
        adapter_slots=message.adapter_slots,
        host_cache_bytes=message.host_cache_bytes,
        load_seconds=message.load_seconds,
    )


def _residency(message: adapter_pb2.Residency) -> Residency:
    return Residency(
        tier=_TIERS.get(message.tier, Tier.UNKNOWN),
        read_seconds=message.read_seconds,
        copy_seconds=message.copy_seconds,
        activate_time=_time(message.activate_time) if message.HasField("activate_time") else None,
    )


def _shadow(message: adapter_pb2.Shadow) -> Shadow:
    return Shadow(message.target, message.percent, message.compared, message.equal, message.dropped)


def _time(message: Timestamp) -> datetime:
    return message.ToDatetime(UTC)
