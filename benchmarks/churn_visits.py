"""First tokens of adapters that lie on the server's disk alone, while others decode."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loraplex_client import LoraplexClient

_TIMEOUT_S = 300.0
_TOKEN_IDS = range(32, 256)  # which every vocabulary has


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Seconds from a request to its first token, and where the server says that they went."""

    total: float
    adapter: float  # until its adapter was in a slot, from the first step that asked for it
    queue: float  # what else it waited for, from its arrival until the first step that ran it
    prefill: float  # from that step to the token
    num_cached: int  # tokens of its prompt that were in the prefix cache

    @property
    def way(self) -> float:
        """On the wire and in the front end, there and back."""
        return self.total - self.queue - self.adapter - self.prefill


@dataclass
class Visits:
    """What adapters that no slot had were asked for, in order. Seconds."""

    cold: list[FirstToken] = field(default_factory=list)
    warm: list[FirstToken] = field(default_factory=list)  # of the same adapter behind it: another prompt
    repeated: list[FirstToken] = field(default_factory=list)  # that prompt again, as far as it is cached
    read: list[float] = field(default_factory=list)  # of a cold one: from disk, as the engine timed it
    copied: list[float] = field(default_factory=list)  # ... and then into its slot

    def add(self, others: Visits) -> None:
        self.cold += others.cold
        self.warm += others.warm
        self.repeated += others.repeated
        self.read += others.read
        self.copied += others.copied

    def report(self, copy_ms: float | None) -> dict[str, Any]:
        """Medians in milliseconds; what a cold one may take is told where it is known how long a copy must take."""
        if not self.cold:
            return {"cold_visits": 0}
        warm_ms = _median_ms([one.total for one in self.warm])
        goal = {} if copy_ms is None else {"cold_first_token_goal_ms": round(warm_ms + copy_ms + 20, 1)}
        return {
            "cold_visits": len(self.cold),
            "cold_first_token_ms": _median_ms([one.total for one in self.cold]),
            "cold_first_token_max_ms": _ms(max(one.total for one in self.cold)),
            **goal,
            "warm_first_token_ms": warm_ms,
            "repeated_first_token_ms": _median_ms([one.total for one in self.repeated]),
            "cold_parts_ms": _parts(self.cold),
            "warm_parts_ms": _parts(self.warm),
            "num_cached_tokens": {
                "cold": max(one.num_cached for one in self.cold),
                "warm": max(one.num_cached for one in self.warm),
                "repeated": max(one.num_cached for one in self.repeated),
            },
            "read_ms": _median_ms(self.read),
            "copied_in_ms": _median_ms(self.copied),
        }


def visit_and_delete(target: str, names: Sequence[str], prompt_lengths: Sequence[int]) -> dict[int, Visits]:
    """For each length of prompts in turn, visit all adapters in turn; who comes last has pushed the first one out."""
    prompts = random.Random(5)
    with LoraplexClient(target, timeout_s=_TIMEOUT_S) as client:
        found = {length: Visits() for length in prompt_lengths}
        for length, visits in found.items():
            for name in names:
                first, second = (prompts.choices(_TOKEN_IDS, k=length) for _ in range(2))
                _visit(client, name, first, second, visits)
        for name in names:
            client.adapters.delete(name)
    return found


def _visit(
    client: LoraplexClient, name: str, first: Sequence[int], second: Sequence[int], visits: Visits
) -> None:
    """Ask an adapter for one token to a prompt, to another, and to that again; one that is in a slot does not count.

    Nobody asked it either prompt before, so both are computed whole: the two differ in the load alone.
    """
    is_cold = not client.adapters.get(name).stable.is_resident
    cold, warm, repeated = (_first_token(client, name, prompt) for prompt in (first, second, second))
    if is_cold:
        residency = client.adapters.get(name).stable.residency
        visits.cold.append(cold)
        visits.warm.append(warm)
        visits.repeated.append(repeated)
        visits.read.append(residency.read_seconds)
        visits.copied.append(residency.copy_seconds)


def _first_token(client: LoraplexClient, adapter: str, prompt: Sequence[int]) -> FirstToken:
    started_s = time.monotonic()
    answer = client.generate(
        token_ids=prompt, adapter=adapter, temperature=0.0, max_tokens=1, ignore_eos=True
    )
    total, timings = time.monotonic() - started_s, answer.timings
    adapter_s = timings.adapter_load_seconds
    return FirstToken(
        total,
        adapter_s,
        timings.queue_seconds - adapter_s,
        timings.prefill_seconds,
        answer.usage.cached_prompt_tokens,
    )


def _parts(visits: Sequence[FirstToken]) -> dict[str, float]:
    return {
        part: _median_ms([getattr(one, part) for one in visits])
        for part in ("way", "queue", "adapter", "prefill")
    }


def _median_ms(seconds: Sequence[float]) -> float:
    return _ms(statistics.median(seconds))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
