"""First tokens of adapters that lie on the server's disk alone, while others decode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.churn_streams import PROMPT
from loraplex_client import LoraplexClient

_TIMEOUT_S = 300.0


@dataclass
class Visits:
    """Seconds from a request to its first token."""

    cold: list[float] = field(default_factory=list)  # of an adapter that no slot had
    warm: list[float] = field(default_factory=list)  # of the same, again
    read: list[float] = field(default_factory=list)  # of a cold one: from disk, as the engine timed it
    copied: list[float] = field(default_factory=list)  # ... and then into its slot

    def add(self, others: Visits) -> None:
        for mine, theirs in zip(
            (self.cold, self.warm, self.read, self.copied),
            (others.cold, others.warm, others.read, others.copied),
            strict=True,
        ):
            mine.extend(theirs)


def visit_and_delete(target: str, names: Sequence[str]) -> Visits:
    """Ask each adapter in turn for one token, and for one more; those that are in a slot do not count."""
    visits = Visits()
    with LoraplexClient(target, timeout_s=_TIMEOUT_S) as client:
        for name in names:
            is_cold = not client.adapters.get(name).stable.is_resident
            first_s, again_s = _first_token(client, name), _first_token(client, name)
            if is_cold:
                visits.cold.append(first_s)
                visits.warm.append(again_s)
                residency = client.adapters.get(name).stable.residency
                visits.read.append(residency.read_seconds)
                visits.copied.append(residency.copy_seconds)
        for name in names:
            client.adapters.delete(name)
    return visits


def _first_token(client: LoraplexClient, adapter: str) -> float:
    started_s = time.monotonic()
    client.generate(PROMPT, adapter=adapter, temperature=0.0, max_tokens=1, ignore_eos=True)
    return time.monotonic() - started_s
