"""The changes whose way from one server to another is timed: how each is made, and when it is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraplex_client import LoraplexClient, NotFoundError, VersionState
from tests.integration.tiny_base import save_tiny_adapter

KINDS = ("register", "promote", "split", "pin", "deprecate", "delete")
_BOTH = "both/faq"


@dataclass(frozen=True)
class Change:
    """Made on one server, looked for on another."""

    kind: str  # of KINDS
    make: Callable[[LoraplexClient], object]  # returns when it is acknowledged
    is_seen: Callable[[LoraplexClient], bool]  # one look at what a server serves


class Packages:
    """Of random weights, no two alike; so that each one registered has to be fetched by the other server."""

    def __init__(self, base: Path, folder: Path) -> None:
        self._base = base
        self._folder = folder
        self._made = 0

    def make(self) -> Path:
        self._made += 1
        return save_tiny_adapter(self._base, self._folder / f"p{self._made}", self._made)


class Rounds:
    """Owns the adapter with two versions that every round changes; registers and deletes others."""

    def __init__(self, packages: Packages, clients: Sequence[LoraplexClient]) -> None:
        """Both servers have been asked for both versions when this returns."""
        self._packages = packages
        self._digests = [
            clients[0].adapters.upload(_BOTH, packages.make(), on_existing="add_version").digest
            for _ in range(2)
        ]
        for client in clients:
            for digest in self._digests:
                answered_by(client, f"{_BOTH}@{digest}")

    def changes(self, number: int, first: LoraplexClient, second: LoraplexClient) -> Iterator[Change]:
        """One of each kind, to be made on `first`; what each needs is done when it is given out."""
        new = f"new/n{number}"
        package = self._packages.make()
        answered_by(second, new)  # so that it is known there to be unknown
        digests: list[str] = []
        yield Change(
            "register",
            lambda client: digests.append(client.adapters.upload(new, package).digest),
            lambda client: answered_by(client, new) == digests[0],
        )
        now, before = self._digests if number % 2 else reversed(self._digests)
        yield Change(
            "promote",
            lambda client: client.adapters.promote(_BOTH, now),
            lambda client: answered_by(client, _BOTH) == now,
        )
        yield Change(
            "split",
            lambda client: client.adapters.split(_BOTH, {before: 1}),
            lambda client: answered_by(client, _BOTH) == before,
        )
        yield self._pin(f"pinned/n{number}", first, second)
        first.adapters.delete(f"pinned/n{number}")
        first.adapters.split(_BOTH, {})
        yield Change(
            "deprecate",
            lambda client: client.adapters.deprecate(_BOTH, before),
            lambda client: state_of(client, before) is VersionState.DEPRECATED,
        )
        first.adapters.deprecate(_BOTH, before, undo=True)
        yield Change(
            "delete",
            lambda client: client.adapters.delete(new),
            lambda client: answered_by(client, new) is None,
        )

    def _pin(self, name: str, first: LoraplexClient, second: LoraplexClient) -> Change:
        """Of an adapter that the second server knows, and has in no slot."""
        first.adapters.upload(name, self._packages.make())
        second.adapters.get(name)
        return Change("pin", lambda client: client.adapters.pin(name), lambda client: is_held(client, name))


def answered_by(client: LoraplexClient, adapter: str) -> str | None:
    """The digest; None where the server knows no such adapter."""
    try:
        return client.generate("And now?", adapter=adapter, temperature=0.0, max_tokens=1).adapter_digest
    except NotFoundError:
        return None


def state_of(client: LoraplexClient, digest: str) -> VersionState:
    """Of a version of the adapter with two."""
    return client.adapters.get(_BOTH).version(digest).state


def is_held(client: LoraplexClient, name: str) -> bool:
    """Whether it is known there as pinned, and in a slot."""
    adapter = client.adapters.get(name)
    return adapter.pinned and adapter.stable.is_resident
