"""What is kept of a run: a record of each request, and one log of all messages that carried tokens."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

OK = "OK"
UNFINISHED = "UNFINISHED"
"""Status of a request that was still running when the drain ended."""
CANCELLED_BY_PLAN = "CANCELLED_BY_PLAN"
"""Status of a request that gave up because the scenario told it to; neither good nor an error."""


@dataclass(slots=True)
class RequestRecord:
    """One request. Moments are seconds since the run began, on this machine's monotonic clock; NaN: never came."""

    index: int
    traffic: str
    tenant: str
    adapter: str  # empty: the base
    intended_s: float
    sent_s: float
    prompt_tokens: int  # as the server counted them; the plan's until it says so
    max_tokens: int
    first_s: float = math.nan  # first message that carried a token
    last_s: float = math.nan  # last one
    ended_s: float = math.nan
    status: str = UNFINISHED
    reason: str = ""
    tokens: int = 0  # counted here, message by message
    usage_tokens: int = -1  # as the server counted them at the end; -1: it did not say
    is_cold: bool = False  # waited for its adapter, or was the adapter's first where the server does not say
    queue_s: float = math.nan  # as the server says
    adapter_load_s: float = math.nan
    digest: str = ""  # of what answered, where the server says
    prompt_differs: bool = False  # the server counted another length than the plan's
    connection: int = 0
    attempts: int = 1  # how often it was sent; more than once with retries alone
    lost_attempts: int = 0  # earlier ones of which the server may have generated something

    @property
    def was_cut(self) -> bool:
        """Whether the server may have generated tokens that never arrived here."""
        is_last = self.status != OK and (self.tokens > 0 or self.status in _MAY_HAVE_STARTED)
        return is_last or self.lost_attempts > 0


_MAY_HAVE_STARTED = frozenset(
    {UNFINISHED, CANCELLED_BY_PLAN, "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
)


@dataclass(slots=True)
class DeltaLog:
    """Every message that carried tokens, in order of arrival: three arrays, whatever the number of streams."""

    request: array[int] = field(default_factory=lambda: array("l"))
    at_s: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[int] = field(default_factory=lambda: array("l"))

    def append(self, request: int, at_s: float, tokens: int) -> None:
        self.request.append(request)
        self.at_s.append(at_s)
        self.tokens.append(tokens)

    def __len__(self) -> int:
        return len(self.request)


@dataclass(frozen=True, slots=True)
class GeneratorLoad:
    """What one generator process did. CPU is a share of one core while requests were sent."""

    cpu_share: float
    messages: int
    peak_streams: int
    seconds: float


@dataclass(frozen=True)
class Recording:
    """All of a run, merged over processes."""

    records: tuple[RequestRecord, ...]  # in order of their intended moments
    request: NDArray[np.int64]  # three columns: index into `records`, moment, tokens
    at_s: NDArray[np.float64]
    tokens: NDArray[np.int64]
    generators: tuple[GeneratorLoad, ...]

    @classmethod
    def merge(cls, parts: Sequence[tuple[Sequence[RequestRecord], DeltaLog, GeneratorLoad]]) -> Recording:
        """Indices are unique over processes. Messages of a request stay together, in order."""
        records = sorted((record for part in parts for record in part[0]), key=lambda one: one.intended_s)
        position = {record.index: place for place, record in enumerate(records)}
        request = np.array([position[index] for part in parts for index in part[1].request], dtype=np.int64)
        at_s = np.concatenate([np.frombuffer(part[1].at_s, dtype=np.float64) for part in parts])
        tokens = np.concatenate([np.array(part[1].tokens, dtype=np.int64) for part in parts])
        order = np.argsort(request, kind="stable")
        if not any(record.digest or not math.isnan(record.adapter_load_s) for record in records):
            _mark_first_requests(records)
        loads = tuple(part[2] for part in parts)
        return cls(tuple(records), request[order], at_s[order], tokens[order], loads)


def _mark_first_requests(records: Sequence[RequestRecord]) -> None:
    """Where the server says nothing of loading, the first request of an adapter is the cold one."""
    seen: set[str] = {""}
    for record in records:
        if record.adapter not in seen:
            record.is_cold = True
            seen.add(record.adapter)
