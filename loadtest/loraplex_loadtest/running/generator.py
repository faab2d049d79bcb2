"""Sends a part of a plan from one process and records what comes back."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loraplex_loadtest.disturbances.schedule import (
    Behaviour,
    Disturbance,
    Occurrence,
    ReopenConnections,
    behaviour_at,
    occurrences,
)
from loraplex_loadtest.records import (
    CANCELLED_BY_PLAN,
    OK,
    DeltaLog,
    GeneratorLoad,
    RequestRecord,
)
from loraplex_loadtest.running.clock import now_s
from loraplex_loadtest.running.connections import ConnectionPool
from loraplex_loadtest.scenario import Client
from loraplex_loadtest.targets.target import Question, TargetAddress
from loraplex_loadtest.workload.plan import IntendedRequest

SNAPSHOT_EVERY_S = 0.25
_STOP_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Order:
    """What one generator process is told. Picklable."""

    address: TargetAddress
    requests: tuple[IntendedRequest, ...]  # its own part
    questions: tuple[Question, ...]  # one for each request
    disturbances: tuple[Disturbance, ...]
    client: Client
    duration_s: float
    drain_s: float
    number: int  # which process
    processes: int  # of so many


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a generator is; sent while it runs."""

    at_s: float
    started: int
    ended: int
    errors: int
    tokens: int
    in_flight: int
    ttft_s: tuple[float, ...]  # of first tokens since the last snapshot
    adapters: dict[str, int]  # ended requests by adapter, in all


@dataclass(slots=True)
class _Counts:
    started: int = 0
    ended: int = 0
    errors: int = 0
    tokens: int = 0
    peak: int = 0


class _Running:
    """The sink of one request."""

    __slots__ = ("_cancel_after", "_generator", "_pause_s", "record")

    def __init__(self, generator: Generator, record: RequestRecord, behaviour: Behaviour) -> None:
        self._generator = generator
        self.record = record
        self._cancel_after = behaviour.cancel_after_tokens
        self._pause_s = behaviour.read_pause_s

    def tokens(self, count: int) -> bool:
        record = self.record
        at_s = now_s() - self._generator.start_s
        if not record.tokens:
            record.first_s = at_s
            self._generator.first_tokens.append(at_s - record.intended_s)
        record.last_s = at_s
        record.tokens += count
        self._generator.deltas.append(record.index, at_s, count)
        self._generator.counts.tokens += count
        if self._cancel_after and record.tokens >= self._cancel_after:
            record.status = CANCELLED_BY_PLAN
            return False
        return True

    async def pause(self) -> None:
        if self._pause_s:
            await asyncio.sleep(self._pause_s)

    def answered_by(self, digest: str) -> None:
        self.record.digest = digest

    def counted(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.record.prompt_tokens = prompt_tokens
        self.record.usage_tokens = completion_tokens
        self.record.status = OK

    def completed(self) -> None:
        self.record.status = OK

    def server_times(self, queue_s: float, adapter_load_s: float) -> None:
        self.record.queue_s = queue_s
        self.record.adapter_load_s = adapter_load_s
        self.record.is_cold = adapter_load_s > 0

    def failed(self, status: str, reason: str) -> None:
        self.record.status = status
        self.record.reason = reason


class Generator:
    """One process's share of the load. In an open loop nothing that the server does delays a request."""

    def __init__(self, order: Order, on_snapshot: Callable[[Snapshot], None], must_stop: Callable[[], bool]):
        self._order = order
        self._on_snapshot = on_snapshot
        self._must_stop = must_stop
        self._records: list[RequestRecord] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._adapters: dict[str, int] = {}
        self.deltas = DeltaLog()
        self.counts = _Counts()
        self.first_tokens: deque[float] = deque()
        self.start_s = 0.0
        self._stopping = asyncio.Event()

    async def prepare(self) -> None:
        """Connects, and puts every request into the protocol's words."""
        self._pool = ConnectionPool(self._order.address, self._order.client)
        await self._pool.open()
        self._prepared = [self._pool.prepare(question) for question in self._order.questions]

    async def run(self, start_s: float) -> tuple[list[RequestRecord], DeltaLog, GeneratorLoad]:
        """Everything from `start_s`, a moment of the monotonic clock, until all has ended."""
        self.start_s = start_s
        gc.collect()
        gc.freeze()  # what was prepared is never looked through again
        await asyncio.sleep(max(0.0, start_s - now_s()))
        cpu_s, began_s = time.process_time(), now_s()
        reporter = asyncio.create_task(self._report())
        senders = [self._send_open(), *self._users(), self._reopen()]
        sending = asyncio.gather(*senders)
        stop = asyncio.create_task(self._stopping.wait())
        waited: set[asyncio.Future[Any]] = {sending, stop}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        seconds = now_s() - began_s
        cpu_share = (time.process_time() - cpu_s) / max(seconds, 1e-9)
        await self._drain()
        for task in (reporter, stop):
            task.cancel()
        await asyncio.gather(reporter, stop, return_exceptions=True)
        self._snapshot()
        await self._pool.close()
        gc.unfreeze()
        return (
            self._records,
            self.deltas,
            GeneratorLoad(cpu_share, len(self.deltas), self.counts.peak, seconds),
        )

    async def _send_open(self) -> None:
        for position, request in enumerate(self._order.requests):
            if request.user >= 0:
                continue
            wait_s = self.start_s + request.at_s - now_s()
            await asyncio.sleep(max(0.0, wait_s))
            task = asyncio.create_task(self._ask(position, request, request.at_s, request.index))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _users(self) -> list[Any]:
        by_user: dict[int, list[int]] = {}
        for position, request in enumerate(self._order.requests):
            if request.user >= 0:
                by_user.setdefault(request.user, []).append(position)
        serial = iter(range(self._order.number, 1 << 62, self._order.processes))
        # Above the open loops' indices, which are positions in the plan.
        base = 1 << 32 if any(request.user < 0 for request in self._order.requests) else 0
        return [self._user(positions, lambda: base + next(serial)) for positions in by_user.values()]

    async def _user(self, positions: Sequence[int], next_index: Callable[[], int]) -> None:
        while True:
            for position in positions:
                request = self._order.requests[position]
                intended_s = now_s() - self.start_s + request.think_s
                if intended_s >= self._order.duration_s:
                    return
                await asyncio.sleep(request.think_s)
                task = asyncio.create_task(self._ask(position, request, intended_s, next_index()))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                await asyncio.wait({task})

    async def _ask(self, position: int, request: IntendedRequest, intended_s: float, index: int) -> None:
        behaviour = request.behaviour
        if request.user >= 0:
            behaviour = behaviour_at(behaviour, self._order.disturbances, intended_s, request.draws)
        connection = self._pool.take()
        record = RequestRecord(
            index=index,
            traffic=request.traffic,
            tenant=request.tenant,
            adapter=request.adapter,
            intended_s=intended_s,
            sent_s=0.0,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.max_tokens,
            connection=connection.number,
        )
        self._records.append(record)
        self.counts.started += 1
        self.counts.peak = max(self.counts.peak, self.counts.started - self.counts.ended)
        record.sent_s = now_s() - self.start_s
        try:
            await connection.ask(
                self._prepared[position], behaviour.deadline_s, _Running(self, record, behaviour)
            )
        finally:
            record.ended_s = now_s() - self.start_s
            self._pool.give_back(connection)
            self.counts.ended += 1
            self.counts.errors += record.status not in (OK, CANCELLED_BY_PLAN)
            self._adapters[record.adapter] = self._adapters.get(record.adapter, 0) + 1

    async def _reopen(self) -> None:
        moments: list[Occurrence] = occurrences(self._order.disturbances, ReopenConnections)
        for moment in moments:
            await asyncio.sleep(max(0.0, self.start_s + moment.at_s - now_s()))
            self._pool.renew()

    async def _drain(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._order.drain_s)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _report(self) -> None:
        next_s = now_s() + SNAPSHOT_EVERY_S
        while True:
            await asyncio.sleep(_STOP_POLL_S)
            if not self._stopping.is_set() and self._must_stop():
                self._stopping.set()
            if now_s() >= next_s:
                next_s += SNAPSHOT_EVERY_S
                self._snapshot()

    def _snapshot(self) -> None:
        counts = self.counts
        first = tuple(self.first_tokens)
        self.first_tokens.clear()
        self._on_snapshot(
            Snapshot(
                at_s=now_s() - self.start_s,
                started=counts.started,
                ended=counts.ended,
                errors=counts.errors,
                tokens=counts.tokens,
                in_flight=counts.started - counts.ended,
                ttft_s=first,
                adapters=dict(self._adapters),
            )
        )
