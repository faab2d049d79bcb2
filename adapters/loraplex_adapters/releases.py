"""Adapters as releases: a name, its immutable versions, and which of them answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from loraplex_adapters.errors import AdapterNotFoundError
from loraplex_adapters.names import STABLE, AdapterName, digest_of

MAX_VERSIONS = 64
MAX_SHARES = 8
_BUCKETS = 2**32


class VersionState(StrEnum):
    """Where a version is in its life, as far as it must survive a restart."""

    READY = "ready"
    DEPRECATED = "deprecated"  # served where it is named; gets no alias, traffic or shadow more
    FAILED = "failed"  # its stored package is missing or damaged


class OnExisting(StrEnum):
    """What a registration does where the name is in use by other weights."""

    REFUSE = "refuse"
    ADD_VERSION = "add_version"
    PROMOTE = "promote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of an adapter. Identity is its digest; only `state` ever changes."""

    digest: str  # SHA-256 of the package, hex
    size_bytes: int  # of the weights
    num_elements: int  # of the weights; what an adapter slot holds
    rank: int  # largest of any module
    target_modules: tuple[str, ...]  # sorted
    served_module_count: int  # (layer, module) pairs
    base_fingerprint: str
    template_hash: str = ""  # of the chat template it was proved with; empty: the base has none
    source: str = "upload"  # "upload", "folder", or a URL without its secrets
    signer: str = ""  # empty: not signed or not asked
    state: VersionState = VersionState.READY
    created_at: datetime  # UTC


@dataclass(frozen=True, slots=True)
class TrafficShare:
    """A part of the bare name's requests: weight / sum of weights."""

    target: str  # alias or beginning of a digest
    weight: int  # in [1, 10000]


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that answers unseen."""

    target: str  # alias or beginning of a digest
    percent: int  # of the bare name's requests, in [1, 100]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter as the registry held it at one revision. Immutable: a change makes another one."""

    name: AdapterName
    versions: tuple[Version, ...]  # newest first, at least one
    aliases: Mapping[str, str]  # alias -> digest; "stable" is always there
    traffic: tuple[TrafficShare, ...] = ()  # empty: all to "stable"
    shadow: Shadow | None = None
    is_pinned: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    revision: int  # of the registry, when this adapter was last changed; its etag
    created_at: datetime  # UTC
    updated_at: datetime  # UTC

    @property
    def stable(self) -> Version:
        """What answers the bare name where traffic is not split."""
        return self.version(STABLE)

    def version(self, target: str) -> Version:
        """The version of an alias, or of a digest or its beginning. Raises AdapterNotFoundError."""
        digest = self.aliases.get(target) or digest_of(target)
        found = [version for version in self.versions if digest and version.digest.startswith(digest)]
        if len(found) == 1:
            return found[0]
        what = "several versions" if found else "no version or alias"
        raise AdapterNotFoundError(f"adapter '{self.name}' has {what} '{target[:64]}'")

    def choose(self, routing_key: str) -> Version:
        """What answers a request of the bare name: by the split, alike for equal keys."""
        if not self.traffic:
            return self.stable
        point = _bucket("traffic", str(self.name), routing_key) * sum(share.weight for share in self.traffic)
        for share in self.traffic:
            point -= share.weight * _BUCKETS
            if point < 0:
                return self.version(share.target)
        return self.version(self.traffic[-1].target)

    def shadow_of(self, routing_key: str) -> Version | None:
        """The version that answers a request of the bare name unseen, if any does."""
        if (
            self.shadow is None
            or _bucket("shadow", str(self.name), routing_key) * 100 >= self.shadow.percent * _BUCKETS
        ):
            return None
        return self.version(self.shadow.target)

    def served_by_name(self) -> tuple[Version, ...]:
        """All versions that requests of the bare name may get."""
        if not self.traffic:
            return (self.stable,)
        return tuple({v.digest: v for v in (self.version(share.target) for share in self.traffic)}.values())


class EventKind(StrEnum):
    """What kind of change; see loraplex.v1.AdapterEvent."""

    REGISTERED = "registered"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    UPDATED = "updated"
    DEPRECATED = "deprecated"
    FAILED = "failed"
    VERSION_DELETED = "version_deleted"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    """One change of the registry. Revisions grow by one with every change, in the order of their commits."""

    revision: int
    kind: EventKind
    name: AdapterName
    digest: str  # empty where no version is concerned
    aliases: tuple[str, ...]  # those that were moved, made or removed, "stable" before the other
    at: datetime  # UTC


def _bucket(purpose: str, name: str, key: str) -> int:
    """Where a key falls in [0, 2**32), evenly; purposes and names are independent of one another."""
    parts = b"".join(
        len(p).to_bytes(4, "little") + p for p in (purpose.encode(), name.encode(), key.encode())
    )
    return int.from_bytes(hashlib.blake2b(parts, digest_size=4).digest(), "little")
