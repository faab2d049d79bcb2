"""The latency law of the fake server: when each token of each request is due, computed and not measured."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LatencyLaw:
    """What the fake server obeys. Seconds."""

    first_token_s: float = 0.1  # from the start of a request to its first token
    per_prompt_token_s: float = 0.0  # on top, for each token of the prompt
    per_token_s: float = 0.01  # between tokens
    tokens_per_message: int = 1
    adapter_load_s: float = 0.0  # on top, for an adapter that is in no slot
    adapter_slots: int = 0  # 0: every adapter is cold once
    max_running: int = 0  # further requests wait in order; 0: none ever waits
    max_waiting: int = 0  # further ones are refused; 0: none
    retry_after_s: float = 0.0  # what refused requests are told; 0: nothing
    stall_at_s: float = 0.0  # after the first request; from then on, for `stall_s`, no request starts
    stall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a request's tokens are due."""

    start_s: float  # it leaves the queue
    load_s: float  # for its adapter
    first_s: float
    per_token_s: float
    end_s: float


@dataclass(slots=True)
class LawState:
    """Applies a law to requests as they arrive. Moments are of any one clock.

    Departures are computed at arrival, so that late timers of the server do not lower its capacity.
    """

    law: LatencyLaw
    _free_s: list[float] = field(default_factory=list)  # when each place is free; a heap
    _resident: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _began_s: float | None = None
    _starts: list[float] = field(default_factory=list)  # of requests that may still wait; a heap

    def admit(self, at_s: float, adapter: str, prompt_tokens: int, tokens: int) -> Schedule | None:
        """None: as many wait as may."""
        law = self.law
        if self._began_s is None:
            self._began_s = at_s
        while self._starts and self._starts[0] <= at_s:
            heapq.heappop(self._starts)
        if law.max_waiting and len(self._starts) >= law.max_waiting:
            return None
        start_s = self._start(at_s)
        load_s = self._load(adapter)
        first_s = start_s + load_s + law.first_token_s + law.per_prompt_token_s * prompt_tokens
        end_s = first_s + law.per_token_s * (tokens - 1)
        if law.max_running:
            heapq.heappush(self._free_s, end_s)
        heapq.heappush(self._starts, start_s)
        return Schedule(start_s, load_s, first_s, law.per_token_s, end_s)

    def _start(self, at_s: float) -> float:
        law = self.law
        if law.max_running and len(self._free_s) >= law.max_running:
            at_s = max(at_s, heapq.heappop(self._free_s))
        assert self._began_s is not None
        stall_s = self._began_s + law.stall_at_s
        if law.stall_s and stall_s <= at_s < stall_s + law.stall_s:
            return stall_s + law.stall_s
        return at_s

    def _load(self, adapter: str) -> float:
        if not adapter:
            return 0.0
        if adapter in self._resident:
            self._resident.move_to_end(adapter)
            return 0.0
        self._resident[adapter] = None
        if self.law.adapter_slots and len(self._resident) > self.law.adapter_slots:
            self._resident.popitem(last=False)
        return self.law.adapter_load_s
