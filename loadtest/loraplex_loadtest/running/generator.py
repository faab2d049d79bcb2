"""Sends a part of a plan from one process and records what comes back."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

from loraplex_loadtest.disturbances.schedule import ReopenConnections, behaviour_at, occurrences
from loraplex_loadtest.records import OK, DeltaLog, GeneratorLoad, RequestRecord
from loraplex_loadtest.running.clock import now_s
from loraplex_loadtest.running.connections import ConnectionPool, PooledConnection
from loraplex_loadtest.running.ledger import Ledger, RequestSink
from loraplex_loadtest.running.order import SNAPSHOT_EVERY_S, Order, Snapshot
from loraplex_loadtest.running.retries import Retries
from loraplex_loadtest.workload.plan import IntendedRequest

_STOP_POLL_S = 0.05


class Generator:
    """One process's share of the load. In an open loop nothing that the server does delays a request."""

    def __init__(self, order: Order, on_snapshot: Callable[[Snapshot], None], must_stop: Callable[[], bool]):
        self._order = order
        self._on_snapshot = on_snapshot
        self._must_stop = must_stop
        self._ledger = Ledger()
        self._retries = Retries(order.client.retries)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    async def prepare(self) -> None:
        """Connects, and puts every request into the protocol's words."""
        self._pool = ConnectionPool(self._order.address, self._order.client)
        await self._pool.open()
        self._prepared = [self._pool.prepare(question) for question in self._order.questions]

    async def run(self, start_s: float) -> tuple[list[RequestRecord], DeltaLog, GeneratorLoad]:
        """Everything from `start_s`, a moment of the monotonic clock, until all has ended."""
        self._ledger.start_s = start_s
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
        self._on_snapshot(self._ledger.snapshot())
        await self._pool.close()
        gc.unfreeze()
        return self._ledger.records, self._ledger.deltas, self._ledger.load(cpu_share, seconds)

    async def _send_open(self) -> None:
        for position, request in enumerate(self._order.requests):
            if request.user >= 0:
                continue
            wait_s = request.at_s - self._ledger.now_s()
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
                intended_s = self._ledger.now_s() + request.think_s
                if intended_s >= self._order.duration_s:
                    return
                await asyncio.sleep(request.think_s)
                task = asyncio.create_task(self._ask(position, request, intended_s, next_index()))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                # Who still waits when the load ends is drained like the others.
                await asyncio.wait({task}, timeout=max(0.0, self._order.duration_s - self._ledger.now_s()))
                if not task.done():
                    return

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
        self._ledger.begin(record)
        try:
            sink = RequestSink(self._ledger, record, behaviour)
            await self._attempt(connection, self._prepared[position], behaviour.deadline_s, sink)
        finally:
            self._ledger.end(record)
            self._pool.give_back(connection)

    async def _attempt(
        self, connection: PooledConnection, prepared: Any, deadline_s: float, sink: RequestSink
    ) -> None:
        """Once, and again as long as retries say so; the deadline is that of all attempts together."""
        until_s = now_s() + deadline_s
        while True:
            await connection.ask(prepared, max(0.0, until_s - now_s()), sink)
            if sink.record.status == OK:
                self._retries.succeeded()
            if sink.was_answered:
                return
            pause_s = self._retries.pause_s(sink.record, sink.retry_after_s, until_s - now_s())
            if pause_s is None:
                return
            await asyncio.sleep(pause_s)
            sink.attempt_again()

    async def _reopen(self) -> None:
        for moment in occurrences(self._order.disturbances, ReopenConnections):
            await asyncio.sleep(max(0.0, moment.at_s - self._ledger.now_s()))
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
                self._on_snapshot(self._ledger.snapshot())
