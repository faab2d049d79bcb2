"""What one generator records: requests, messages, and how many of each."""

from __future__ import annotations

import asyncio
from collections import deque

from loraplex_loadtest.disturbances.schedule import Behaviour
from loraplex_loadtest.records import (
    CANCELLED_BY_PLAN,
    OK,
    UNFINISHED,
    DeltaLog,
    GeneratorLoad,
    RequestRecord,
)
from loraplex_loadtest.running.clock import now_s
from loraplex_loadtest.running.order import Snapshot


class Ledger:
    """Of one run of one process. Moments are since the run began."""

    def __init__(self) -> None:
        self.start_s = 0.0  # of the monotonic clock
        self.records: list[RequestRecord] = []
        self.deltas = DeltaLog()
        self._first_tokens: deque[float] = deque()
        self._adapters: dict[str, int] = {}
        self._ended = 0
        self._errors = 0
        self._tokens = 0
        self._peak = 0

    def now_s(self) -> float:
        return now_s() - self.start_s

    def begin(self, record: RequestRecord) -> None:
        """It is about to be sent."""
        self.records.append(record)
        self._peak = max(self._peak, len(self.records) - self._ended)
        record.sent_s = self.now_s()

    def add_tokens(self, record: RequestRecord, count: int) -> None:
        """A message of a request came now."""
        at_s = self.now_s()
        if not record.tokens:
            record.first_s = at_s
            self._first_tokens.append(at_s - record.intended_s)
        record.last_s = at_s
        record.tokens += count
        self.deltas.append(record.index, at_s, count)
        self._tokens += count

    def end(self, record: RequestRecord) -> None:
        """It is over, however it ended."""
        record.ended_s = self.now_s()
        self._ended += 1
        self._errors += record.status not in (OK, CANCELLED_BY_PLAN)
        self._adapters[record.adapter] = self._adapters.get(record.adapter, 0) + 1

    def snapshot(self) -> Snapshot:
        """All since the run began, and the first tokens since the last snapshot."""
        first = tuple(self._first_tokens)
        self._first_tokens.clear()
        return Snapshot(
            at_s=self.now_s(),
            started=len(self.records),
            ended=self._ended,
            errors=self._errors,
            tokens=self._tokens,
            in_flight=len(self.records) - self._ended,
            ttft_s=first,
            adapters=dict(self._adapters),
        )

    def load(self, cpu_share: float, seconds: float) -> GeneratorLoad:
        return GeneratorLoad(cpu_share, len(self.deltas), self._peak, seconds)


class RequestSink:
    """The sink of one request: writes what happens to it into the ledger."""

    __slots__ = ("_cancel_after", "_ledger", "_pause_s", "record", "retry_after_s", "was_answered")

    def __init__(self, ledger: Ledger, record: RequestRecord, behaviour: Behaviour) -> None:
        self._ledger = ledger
        self.record = record
        self.retry_after_s: float | None = None  # as the server said with the last failure
        self.was_answered = False  # the server has begun
        self._cancel_after = behaviour.cancel_after_tokens
        self._pause_s = behaviour.read_pause_s

    def tokens(self, count: int) -> bool:
        self.was_answered = True
        self._ledger.add_tokens(self.record, count)
        if self._cancel_after and self.record.tokens >= self._cancel_after:
            self.record.status = CANCELLED_BY_PLAN
            return False
        return True

    async def pause(self) -> None:
        if self._pause_s:
            await asyncio.sleep(self._pause_s)

    def answered_by(self, digest: str) -> None:
        self.record.digest = digest
        self.was_answered = True

    def counted(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.record.prompt_differs = prompt_tokens != self.record.prompt_tokens
        self.record.prompt_tokens = prompt_tokens
        self.record.usage_tokens = completion_tokens
        self.record.status = OK

    def completed(self) -> None:
        self.record.status = OK

    def server_times(self, queue_s: float, adapter_load_s: float) -> None:
        self.record.queue_s = queue_s
        self.record.adapter_load_s = adapter_load_s
        self.record.is_cold = adapter_load_s > 0

    def failed(self, status: str, reason: str, retry_after_s: float | None = None) -> None:
        self.record.status = status
        self.record.reason = reason
        self.retry_after_s = retry_after_s

    def attempt_again(self) -> None:
        """The last attempt is forgotten, but not that there was one."""
        self.record.lost_attempts += self.record.was_cut
        self.record.attempts += 1
        self.record.status, self.record.reason = UNFINISHED, ""
        self.retry_after_s = None
