"""What calls about adapters return: plain frozen records, no protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from loraplex_client.names import short_name

STABLE = "stable"
"""The alias that every adapter has; it answers the bare name where traffic is not split."""
MIN_DIGEST_CHARACTERS = 12
"""So many hex digits of a digest name a version."""


class VersionState(StrEnum):
    """Where a version is in its life."""

    READY = "ready"
    DEPRECATED = "deprecated"  # served where it is named; not to be promoted any more
    FAILED = "failed"  # its stored package is missing or damaged
    UNKNOWN = "unknown"  # a newer server's state


class Tier(StrEnum):
    """The nearest memory of the server that holds a version's weights."""

    DISK = "disk"  # a request waits for a read and a copy
    HOST = "host"  # a request waits for a copy
    SLOT = "slot"  # a request waits for nothing
    UNKNOWN = "unknown"  # a newer server's tier


class AdapterEventKind(StrEnum):
    """What kind of change an event tells."""

    REGISTERED = "registered"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    UPDATED = "updated"  # traffic, shadow, labels or pin changed, or an alias removed: read it
    DEPRECATED = "deprecated"  # or the mark taken back
    FAILED = "failed"
    VERSION_DELETED = "version_deleted"
    DELETED = "deleted"
    UNKNOWN = "unknown"  # a newer server's kind


@dataclass(frozen=True, slots=True)
class Residency:
    """Where a version's weights are on the server that answered, and how long that took."""

    tier: Tier
    read_seconds: float  # disk to host memory, the last time; 0: not since the engine started
    copy_seconds: float  # into the slot, the last time; 0: not since the engine started
    activate_time: datetime | None  # when they last came into a slot, UTC; None: not since the engine started


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version of an adapter."""

    digest: str  # SHA-256 of the package, hex
    state: VersionState
    size_bytes: int
    rank: int  # largest of its modules
    target_modules: tuple[str, ...]
    served_module_count: int  # (layer, module) pairs
    base_fingerprint: str
    template_hash: str  # of the chat template it was proved with; empty: the base has none
    source: str  # "upload", "folder", or a URL
    signer: str  # empty: not signed or not asked
    create_time: datetime  # UTC
    residency: Residency

    @property
    def is_resident(self) -> bool:
        """Whether its weights are in an adapter slot of the engine."""
        return self.residency.tier is Tier.SLOT


@dataclass(frozen=True, slots=True)
class TrafficShare:
    """A part of the bare name's requests: weight / sum of weights."""

    target: str  # alias or beginning of a digest
    weight: int


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version whose answers are compared with the served ones and discarded."""

    target: str  # alias or beginning of a digest
    percent: int  # of the bare name's requests
    compared: int  # answers, since the server started
    equal: int  # of those, with exactly the served tokens
    dropped: int  # failed, or left out because the server was busy


@dataclass(frozen=True, slots=True)
class Adapter:
    """A registered adapter: its versions, and which of them answers."""

    resource_name: str  # tenants/TENANT/adapters/ADAPTER
    digest: str  # of the version that "stable" points at
    versions: tuple[Version, ...]  # newest first
    aliases: Mapping[str, str]  # alias -> digest
    traffic: tuple[TrafficShare, ...]  # empty: all to "stable"
    shadow: Shadow | None
    pinned: bool
    labels: Mapping[str, str]
    etag: str  # changes with every change of the adapter
    create_time: datetime  # UTC
    update_time: datetime  # UTC

    @property
    def name(self) -> str:
        """The shortest form that requests may use, e.g. "shop" or "finance/faq"."""
        return short_name(self.resource_name)

    @property
    def stable(self) -> Version:
        """What answers the bare name where traffic is not split."""
        return self.version(STABLE)

    def version(self, target: str) -> Version:
        """The version of an alias or of a digest, of which 12 digits are enough. Raises KeyError."""
        digest = self.aliases.get(target) or target.removeprefix("sha256:").lower()
        found = [version for version in self.versions if version.digest.startswith(digest)]
        if len(found) != 1 or len(digest) < MIN_DIGEST_CHARACTERS:
            raise KeyError(target)
        return found[0]

    def aliases_of(self, version: Version) -> tuple[str, ...]:
        """Aliases that point at one of its versions, sorted."""
        return tuple(sorted(alias for alias, digest in self.aliases.items() if digest == version.digest))


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """What a registration made or found. The version's facts can be read from it directly."""

    adapter: Adapter  # afterwards; with validate_only, as it would be
    version: Version  # the one with the package's digest

    @property
    def name(self) -> str:
        return self.adapter.name

    @property
    def digest(self) -> str:
        return self.version.digest

    @property
    def state(self) -> VersionState:
        return self.version.state

    @property
    def size_bytes(self) -> int:
        return self.version.size_bytes

    @property
    def rank(self) -> int:
        return self.version.rank

    @property
    def target_modules(self) -> tuple[str, ...]:
        return self.version.target_modules

    @property
    def served_module_count(self) -> int:
        return self.version.served_module_count

    @property
    def base_fingerprint(self) -> str:
        return self.version.base_fingerprint

    @property
    def create_time(self) -> datetime:
        return self.version.create_time

    @property
    def is_resident(self) -> bool:
        return self.version.is_resident


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    """A change of the registry."""

    kind: AdapterEventKind
    resource_name: str
    digest: str  # of the version concerned; empty: none is
    alias: str  # the first of `aliases`; empty: none is concerned
    aliases: tuple[str, ...]  # all that were moved, made or removed
    time: datetime  # UTC

    @property
    def name(self) -> str:
        """The shortest form that requests may use."""
        return short_name(self.resource_name)


@dataclass(frozen=True, slots=True)
class PlannedAdapters:
    """Adapters of one kind, to ask a plan for."""

    rank: int
    count: int = 1
    target_modules: tuple[str, ...] = ()  # empty: all seven


@dataclass(frozen=True, slots=True)
class PlanGroup:
    """What a plan says of one kind."""

    bytes_each: int  # of one adapter in a slot
    resident_alone: int  # so many of this kind alone are resident at once
    fits: bool  # whether one fits at all
    step_bytes_share: float  # bytes that one adds to what a decode step reads, as share of the base's


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """Whether adapters fit, asked before they are there."""

    groups: tuple[PlanGroup, ...]  # in the order they were asked for
    resident_together: int  # of all, smallest first
    all_resident: bool
    arena_bytes: int
    adapter_slots: int
    host_cache_bytes: int
    load_seconds: float  # estimate from disk into a slot, for the largest kind; 0: none was loaded yet
