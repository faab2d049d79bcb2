"""Versions and a clock for tests of the registry."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from loraplex_adapters.names import AdapterName
from loraplex_adapters.releases import Version

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SHOP = AdapterName("default", "shop")
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def pass_time(self, **time: float) -> None:
        """Go on by so many `days`, `hours` or other units of timedelta."""
        self.now += timedelta(**time)


def version(digest: str = A, **fields: Any) -> Version:
    """A version with everything that the test does not care about."""
    defaults: dict[str, Any] = {
        "size_bytes": 4096,
        "num_elements": 2048,
        "rank": 8,
        "target_modules": ("q_proj", "v_proj"),
        "served_module_count": 60,
        "base_fingerprint": "f" * 64,
        "template_hash": "e" * 64,
        "created_at": NOW,
    }
    return Version(digest=digest, **{**defaults, **fields})
