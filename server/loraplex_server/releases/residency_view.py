"""Where the weights of each version are, as the engine tells; and who waits for them to be in a slot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from loraplex_server.engine.messages import AdapterLoadFailure, AdapterMove, EngineStats
from loraplex_server.engine_failures import engine_error

TIERS = ("disk", "host", "slot")
"""From the farthest to the nearest."""


@dataclass(frozen=True, slots=True)
class Residency:
    """Of one version on this server."""

    tier: str = "disk"  # of TIERS
    read_s: float = 0.0  # of the last read into host memory; 0: none since the engine started
    copy_s: float = 0.0  # of the last copy into a slot; 0: none
    activated_at: datetime | None = None  # UTC; when it last came into a slot


class ResidencyView:
    """Owned by the front end's event loop. Holds what is above disk, and what was once, up to a bound."""

    def __init__(
        self, clock: Callable[[], datetime] = lambda: datetime.now(UTC), capacity: int = 4096
    ) -> None:
        self._clock = clock
        self._capacity = capacity
        self._by_digest: dict[str, Residency] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}

    def of(self, digest: str) -> Residency:
        """As of the engine's last message."""
        return self._by_digest.get(digest, Residency())

    @property
    def slowest_load_s(self) -> float:
        """Of the loads known: the longest from disk into a slot; 0: none yet."""
        return max((r.read_s + r.copy_s for r in self._by_digest.values() if r.copy_s), default=0.0)

    @property
    def num_waiting(self) -> int:
        """Those who wait for an adapter to be in a slot."""
        return sum(map(len, self._waiters.values()))

    def engine_step(self, stats: EngineStats) -> None:
        """Take in a message of the engine."""
        for move in stats.residency:
            self._move(move)
        for failure in stats.load_failures:
            self._fail(failure)

    def engine_gone(self, error: Exception) -> None:
        """Its memory is lost, and with it everything that was above disk."""
        self._by_digest.clear()
        for digest in list(self._waiters):
            self._wake(digest, error)

    async def wait_for_slot(self, digest: str) -> None:
        """Until the weights are in a slot. Raises why they cannot be."""
        if self.of(digest).tier == "slot":
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(digest, []).append(waiter)
        try:
            await waiter
        finally:
            waiters = self._waiters.get(digest, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._waiters.pop(digest, None)

    def _move(self, move: AdapterMove) -> None:
        before = self._by_digest.pop(move.digest, Residency())
        self._by_digest[move.digest] = replace(
            before,
            tier=move.tier,
            read_s=move.read_seconds or before.read_s,
            copy_s=move.copy_seconds or before.copy_s,
            activated_at=self._clock() if move.tier == "slot" else before.activated_at,
        )
        self._forget_beyond_capacity()
        if move.tier == "slot":
            self._wake(move.digest, None)

    def _forget_beyond_capacity(self) -> None:
        if len(self._by_digest) > self._capacity:
            oldest = next((digest for digest, r in self._by_digest.items() if r.tier == "disk"), None)
            if oldest is not None:
                del self._by_digest[oldest]

    def _fail(self, failure: AdapterLoadFailure) -> None:
        self._wake(failure.digest, engine_error(failure.reason, failure.message))

    def _wake(self, digest: str, error: Exception | None) -> None:
        for waiter in self._waiters.pop(digest, []):
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
