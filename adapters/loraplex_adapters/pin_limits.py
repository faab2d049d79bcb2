"""How much of a server's adapter slots and arena pinned names may take, so that the others find room."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loraplex_adapters.releases import Version


@dataclass(frozen=True, slots=True)
class PinLimits:
    """What pinned names may serve together on this server; the rest is for everybody else."""

    max_versions: int  # adapter slots
    arena_elements: int  # weights of the whole arena, of which the largest version needs its place

    def allowed(self, wanted: Iterable[Version], largest: int) -> set[str]:
        """Digests of those that may be pinned beside each other: each, in the order given, that leaves a version of
        `largest` elements its place.
        """
        left = self.arena_elements - largest
        chosen: set[str] = set()
        for version in wanted:
            is_new = version.digest not in chosen
            if is_new and len(chosen) < self.max_versions and version.num_elements <= left:
                chosen.add(version.digest)
                left -= version.num_elements
        return chosen
