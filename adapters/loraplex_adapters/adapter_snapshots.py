"""An adapter as text and back: the first answer to a request id is kept so."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry_database import from_us, to_us
from loraplex_adapters.releases import Adapter, Shadow, TrafficShare, Version, VersionState


def to_text(adapter: Adapter) -> str:
    """JSON that `from_text` reads."""
    return json.dumps(asdict(adapter), default=_plain, separators=(",", ":"))


def from_text(text: str) -> Adapter:
    """The adapter that `to_text` wrote."""
    fields: dict[str, Any] = json.loads(text)
    shadow = fields["shadow"]
    return Adapter(
        **{
            **fields,
            "name": AdapterName(**fields["name"]),
            "versions": tuple(_version(version) for version in fields["versions"]),
            "traffic": tuple(TrafficShare(**share) for share in fields["traffic"]),
            "shadow": Shadow(**shadow) if shadow else None,
            "created_at": from_us(fields["created_at"]),
            "updated_at": from_us(fields["updated_at"]),
        }
    )


def _version(fields: dict[str, Any]) -> Version:
    return Version(
        **{
            **fields,
            "target_modules": tuple(fields["target_modules"]),
            "state": VersionState(fields["state"]),
            "created_at": from_us(fields["created_at"]),
        }
    )


def _plain(value: object) -> int:
    if isinstance(value, datetime):
        return to_us(value)
    raise TypeError(f"{type(value).__name__} is no part of an adapter")
