"""What an idle server holds, by its own metrics and its disk, against what its adapters say and what is referred to.

Adapters take a constant times 1, 2, 4 and so on: so a number of bytes tells which adapters it is made of.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from loraplex_client import LoraplexClient, Tier
from tests.integration.live_server import LiveServer, eventually

NOTHING_HELD = (
    "running_sequences",
    "waiting_sequences",
    "kv_blocks_used",
    "adapter_leases",
    "package_leases",
    "adapters_loading",
)
"""Gauges that are 0 where nobody asks for anything."""


@dataclass(frozen=True)
class Expected:
    """What the registry refers to: digests."""

    kept: frozenset[str]  # by any version of any adapter
    pinned: frozenset[str]


class Accounts:
    """Of one server. `digest_of_bytes`: of all adapters that there are, each about as large as all smaller ones."""

    def __init__(self, server: LiveServer, client: LoraplexClient, digest_of_bytes: dict[int, str]) -> None:
        self._server = server
        self._client = client
        self._digest_of_bytes = digest_of_bytes

    def check(self, expected: Expected) -> None:
        """As soon as everything has come to rest, all accounts agree; AssertionError with the last difference else."""
        found: list[str] = []

        def agree() -> bool:
            found[:] = self._differences(expected)
            return not found

        try:
            eventually(agree, timeout_s=20)
        except AssertionError:
            raise AssertionError("\n".join(found)) from None

    def _differences(self, expected: Expected) -> list[str]:
        gauges = {
            sample.name.removeprefix("loraplex_"): sample.value
            for sample in self._server.samples()
            if not sample.labels
        }
        tiers = self._tiers()
        in_slots = {digest for digest, tier in tiers.items() if tier is Tier.SLOT}
        on_host = {digest for digest, tier in tiers.items() if tier is Tier.HOST}
        in_arena = self._adapters_of(gauges["adapter_arena_used_bytes"])
        in_cache = self._adapters_of(gauges["host_cache_used_bytes"])
        accounts: dict[str, tuple[object, object]] = {
            **{name: (gauges[name], 0) for name in NOTHING_HELD},
            "slots used": (gauges["adapter_slots_used"], len(in_slots)),
            "adapters in the arena": (in_arena, in_slots),
            "adapters on the host and in no slot": (in_cache - in_slots, on_host),
            "pinned adapters in no slot": (expected.pinned - in_slots, set()),
            "slots pinned": (gauges["adapter_slots_pinned"], len(expected.pinned)),
            "adapters told of": (set(tiers), expected.kept),
            "packages stored": (self._files("adapters", depth=1) - {".lock"}, expected.kept),
            "images kept": (self._files("images", depth=2), expected.kept),
            "uploads left": (self._files("uploads", depth=1), set()),
            "blocks cached beyond all": (max(0, gauges["kv_blocks_cached"] - gauges["kv_blocks"]), 0),
        }
        return [
            f"{name}: {found}, expected {wanted}; tiers {tiers}"
            for name, (found, wanted) in accounts.items()
            if found != wanted
        ]

    def _tiers(self) -> dict[str, Tier]:
        """Of every version of every adapter."""
        return {
            version.digest: version.residency.tier
            for adapter in self._client.adapters.list()
            for version in adapter.versions
        }

    def _adapters_of(self, num_bytes: float) -> Set[str]:
        """The adapters that take so many bytes together, each once."""
        found = set()
        for size in sorted(self._digest_of_bytes, reverse=True):
            if size <= num_bytes:
                found.add(self._digest_of_bytes[size])
                num_bytes -= size
        return found if num_bytes == 0 else {*found, f"{num_bytes:g} bytes of nobody"}

    def _files(self, folder: str, depth: int) -> set[str]:
        """Names so many folders deep."""
        return {path.name for path in (self._server.data_dir / folder).glob("/".join("*" * depth))}
