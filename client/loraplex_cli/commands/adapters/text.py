"""Adapters as JSON documents and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from loraplex_cli.output import columns, facts, mebibytes

if TYPE_CHECKING:
    from loraplex_client import Adapter, AdapterEvent, Residency, Version

DIGEST_CHARACTERS = 12


def adapter_document(adapter: Adapter) -> dict[str, Any]:
    """The adapter as JSON values, its short name first."""
    return {"name": adapter.name, **_values(asdict(adapter))}


def version_document(version: Version) -> dict[str, Any]:
    return {**_values(asdict(version)), "is_resident": version.is_resident}


def event_document(event: AdapterEvent) -> dict[str, Any]:
    return {"name": event.name, **_values(asdict(event))}


def short(digest: str) -> str:
    """Enough of a digest to name a version."""
    return digest[:DIGEST_CHARACTERS]


def version_facts(adapter: Adapter, version: Version) -> dict[str, object]:
    """Everything about one version."""
    return {
        "adapter": adapter.name,
        "digest": version.digest,
        "state": version.state.value,
        "aliases": ", ".join(adapter.aliases_of(version)) or "none: only its digest names it",
        "modules": f"{version.served_module_count} served: {', '.join(version.target_modules)}",
        "rank": version.rank,
        "size": f"{version.size_bytes} bytes ({mebibytes(version.size_bytes)})",
        "base": version.base_fingerprint,
        "template": version.template_hash or "none",
        "source": version.source,
        "signer": version.signer or "not signed",
        "registered": version.create_time.isoformat(),
        "residency": _residency(version.residency),
    }


def adapter_text(adapter: Adapter) -> str:
    """The adapter, then a line for each version."""
    shadow = adapter.shadow
    lines = facts(
        {
            "name": adapter.name,
            "stable": adapter.digest,
            "aliases": pairs_text({alias: short(digest) for alias, digest in adapter.aliases.items()}),
            "traffic": traffic_text(adapter),
            "shadow": "none"
            if shadow is None
            else f"{shadow.target} answers {shadow.percent} %: {shadow.compared} compared, {shadow.equal} equal, "
            f"{shadow.dropped} dropped",
            "pinned": yes_no(adapter.pinned),
            "labels": pairs_text(adapter.labels) or "none",
            "etag": adapter.etag,
            "created": adapter.create_time.isoformat(),
            "updated": adapter.update_time.isoformat(),
        }
    )
    return f"{lines}\n\n{versions_text(adapter, adapter.versions)}"


def versions_text(adapter: Adapter, versions: Sequence[Version]) -> str:
    """A line for each version."""
    header = ("version", "state", "aliases", "rank", "size", "tier", "read", "copied", "in a slot since")
    rows = [
        (
            short(version.digest),
            version.state.value,
            ",".join(adapter.aliases_of(version)) or "-",
            version.rank,
            mebibytes(version.size_bytes),
            *residency_cells(version.residency),
        )
        for version in versions
    ]
    return columns(header, rows)


def adapters_text(adapters: Sequence[Adapter]) -> str:
    """A line for each adapter."""
    header = ("name", "stable", "versions", "aliases and traffic", "tier", "pinned")
    rows = [
        (
            adapter.name,
            short(adapter.digest),
            len(adapter.versions),
            traffic_text(adapter) if adapter.traffic else ",".join(adapter.aliases),
            adapter.stable.residency.tier.value,
            yes_no(adapter.pinned),
        )
        for adapter in adapters
    ]
    return columns(header, rows)


def traffic_text(adapter: Adapter) -> str:
    """How the bare name's requests are spread, e.g. "stable=90 canary=10"."""
    return " ".join(f"{share.target}={share.weight}" for share in adapter.traffic) or "all to stable"


def residency_cells(residency: Residency) -> tuple[str, str, str, str]:
    """Tier, seconds of the last read and copy, moment of the last activation; "-" where there was none."""
    return (
        residency.tier.value,
        _seconds(residency.read_seconds),
        _seconds(residency.copy_seconds),
        residency.activate_time.isoformat(timespec="seconds") if residency.activate_time else "-",
    )


def pairs_text(pairs: Mapping[str, str]) -> str:
    """KEY=VALUE words."""
    return " ".join(f"{key}={value}" for key, value in pairs.items())


def yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _residency(residency: Residency) -> str:
    tier, read, copied, since = residency_cells(residency)
    return f"{tier}; last read {read}, last copy {copied}, in a slot since {since}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds else "-"


def _values(value: Any) -> Any:
    """Moments as ISO 8601, all else as it is."""
    if isinstance(value, dict):
        return {key: _values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_values(entry) for entry in value]
    return value.isoformat() if isinstance(value, datetime) else value
