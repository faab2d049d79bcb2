"""What all protocols of the fake server share: the law, its counters, and the one place where tokens come due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from loraplex_loadtest.fake.law import LatencyLaw, LawState, Schedule
from loraplex_loadtest.running.clock import now_s

ADAPTERS = 16


class FakeEngine:
    """Obeys a law and counts as Loraplex does."""

    def __init__(self, law: LatencyLaw) -> None:
        self.state = LawState(law)
        self.law = law
        self.counters: dict[tuple[str, str], int] = {}

    async def answer(
        self, adapter: str, prompt_tokens: int, tokens: int
    ) -> AsyncIterator[tuple[Schedule, int]]:
        """(schedule, tokens of this message) as they come due. Raises QueueFullError."""
        schedule = self.state.admit(now_s(), adapter, prompt_tokens, tokens)
        if schedule is None:
            raise QueueFullError
        label, done, finish = adapter or "base", 0, "cancelled"
        try:
            while done < tokens:
                count = min(self.law.tokens_per_message, tokens - done)
                due_s = schedule.first_s + schedule.per_token_s * (done + count - 1)
                if (wait_s := due_s - now_s()) > 0:
                    await asyncio.sleep(wait_s)
                done += count
                yield schedule, count
            finish = "length"
        finally:
            self._add("requests", f'adapter="{label}",finish="{finish}"', 1)
            if done:
                self._add("prompt_tokens", f'adapter="{label}"', prompt_tokens)
                self._add("completion_tokens", f'adapter="{label}"', done)

    def metrics(self) -> str:
        """Prometheus text."""
        lines = []
        for name in ("requests", "prompt_tokens", "completion_tokens"):
            lines.append(f"# TYPE loraplex_{name} counter")
            lines += [
                f"loraplex_{name}_total{{{labels}}} {value}"
                for (counter, labels), value in sorted(self.counters.items())
                if counter == name
            ]
        return "\n".join(lines) + "\n"

    def _add(self, name: str, labels: str, value: int) -> None:
        self.counters[name, labels] = self.counters.get((name, labels), 0) + value


class QueueFullError(Exception):
    """As many requests wait as may."""


def count_words(text: str) -> int:
    """A word is a token; nothing is one too."""
    return max(1, len(text.split()))
