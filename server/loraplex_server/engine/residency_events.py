"""What the front end is told of adapters that moved, until it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from loraplex_server.engine.messages import AdapterLoadFailure, AdapterMove, Tier


@dataclass(slots=True)
class ResidencyEvents:
    """What happened in some time."""

    moves: list[AdapterMove] = field(default_factory=list)  # one per adapter at most, to where it is now
    read_seconds: list[float] = field(default_factory=list)
    copy_seconds: list[float] = field(default_factory=list)
    failures: list[AdapterLoadFailure] = field(default_factory=list)
    evictions: int = 0  # out of a slot
    compacted_bytes: int = 0


class ResidencyLog:
    """Collects events; `take` gives and forgets them."""

    def __init__(self) -> None:
        self._events = ResidencyEvents()
        self._moved: dict[str, AdapterMove] = {}
        self._is_withdrawn = False

    @property
    def is_empty(self) -> bool:
        """Whether no adapter has moved and none has failed; bytes moved within the arena are no news."""
        return not (self._moved or self._events.failures or self._is_withdrawn)

    def was_read(self, digest: str, seconds: float) -> None:
        self._events.read_seconds.append(seconds)
        self._add(AdapterMove(digest, "host", read_seconds=seconds))

    def was_copied(self, digest: str, seconds: float) -> None:
        self._events.copy_seconds.append(seconds)
        self._add(AdapterMove(digest, "slot", copy_seconds=seconds))

    def has_failed(self, failure: AdapterLoadFailure) -> None:
        self._events.failures.append(failure)

    def was_withdrawn(self) -> None:
        """The slot of an adapter that never came is free; nobody's place has changed, but the numbers have."""
        self._is_withdrawn = True

    def was_compacted(self, num_bytes: int) -> None:
        self._events.compacted_bytes += num_bytes

    def take(
        self, evicted: list[str], left_host: Iterable[str], tier_of: Callable[[str], Tier]
    ) -> ResidencyEvents:
        """All since the last call, and these evictions from slots and from host memory; `tier_of` is as of now."""
        events, self._events = self._events, ResidencyEvents()
        events.evictions = len(evicted)
        for digest in (*evicted, *left_host):
            self._moved.setdefault(digest, AdapterMove(digest, "disk"))
        events.moves = [
            AdapterMove(digest, tier_of(digest), move.read_seconds, move.copy_seconds)
            for digest, move in self._moved.items()
        ]
        self._moved = {}
        self._is_withdrawn = False
        return events

    def _add(self, move: AdapterMove) -> None:
        former = self._moved.get(move.digest, AdapterMove(move.digest, move.tier))
        self._moved[move.digest] = AdapterMove(
            move.digest,
            move.tier,
            former.read_seconds + move.read_seconds,
            former.copy_seconds + move.copy_seconds,
        )
