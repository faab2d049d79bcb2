"""Spawns the generators, starts them at one moment, hears their snapshots, and merges what they recorded."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from typing import Any

from loraplex_loadtest.errors import GeneratorFailedError
from loraplex_loadtest.records import Recording
from loraplex_loadtest.running import worker
from loraplex_loadtest.running.clock import now_s
from loraplex_loadtest.running.order import Order, Snapshot
from loraplex_loadtest.targets.target import Question, TargetAddress
from loraplex_loadtest.workload.plan import IntendedRequest, Plan

_LEAD_S = 0.3
"""From the command to start until the start itself: more than a pipe needs."""
_POLL_S = 0.02
_STOP_TIMEOUT_S = 10.0

OnProgress = Callable[[Sequence[Snapshot]], None]
"""Called with the newest snapshot of each generator."""


@dataclass(slots=True)
class _Process:
    process: BaseProcess
    pipe: Pipe
    newest: Snapshot | None = None
    recorded: Any = None

    def receive(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            code = self.process.exitcode
            raise GeneratorFailedError(f"a generator process ended with {code} before its run did") from None


class Controller:
    """The generators of one run. Use as an async context manager: leaving it ends every process."""

    def __init__(self, plan: Plan, address: TargetAddress, questions: Sequence[Question]) -> None:
        self._orders = _orders(plan, address, questions)
        self._processes: list[_Process] = []
        self.start_s = 0.0  # of the monotonic clock, once started

    async def __aenter__(self) -> Controller:
        context = multiprocessing.get_context("spawn")  # gRPC's threads do not survive a fork
        for _ in self._orders:
            ours, theirs = context.Pipe()
            process = context.Process(target=worker.main, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(_Process(process, ours))
        for one, order in zip(self._processes, self._orders, strict=True):
            one.pipe.send(order)
        for one in self._processes:
            await asyncio.to_thread(one.receive)  # READY
        return self

    async def __aexit__(self, *error: object) -> None:
        for one in self._processes:
            one.pipe.close()
            if one.recorded is None:
                one.process.kill()
            await asyncio.to_thread(one.process.join, _STOP_TIMEOUT_S)
            if one.process.is_alive():
                one.process.kill()

    def start(self) -> None:
        """All of them begin at `start_s`, a moment from now."""
        self.start_s = now_s() + _LEAD_S
        for one in self._processes:
            one.pipe.send(self.start_s)

    def stop(self) -> None:
        """No further requests; those that run may finish."""
        for one in self._processes:
            if one.recorded is None:
                with suppress(OSError):
                    one.pipe.send(worker.STOP)

    async def finish(self, on_progress: OnProgress = lambda snapshots: None) -> Recording:
        """Returns when every generator is done. Raises GeneratorFailedError if one dies."""
        while waiting := [one for one in self._processes if one.recorded is None]:
            has_news = False
            for one in waiting:
                while one.recorded is None and one.pipe.poll():
                    message = one.receive()
                    if isinstance(message, Snapshot):
                        one.newest, has_news = message, True
                    else:
                        one.recorded = message
                if one.recorded is None and not one.process.is_alive() and not one.pipe.poll():
                    one.receive()  # tells how it ended
            if has_news:
                on_progress([one.newest for one in self._processes if one.newest is not None])
            await asyncio.sleep(_POLL_S)
        return Recording.merge([one.recorded for one in self._processes])


def _orders(plan: Plan, address: TargetAddress, questions: Sequence[Question]) -> list[Order]:
    """Open loops are dealt out in turn; a user's requests stay together."""
    processes = plan.scenario.client.processes
    parts: list[list[IntendedRequest]] = [[] for _ in range(processes)]
    asked: list[list[Question]] = [[] for _ in range(processes)]
    for request, question in zip(plan.requests, questions, strict=True):
        place = (request.index if request.user < 0 else request.user) % processes
        parts[place].append(request)
        asked[place].append(question)
    return [
        Order(
            address=address,
            requests=tuple(parts[number]),
            questions=tuple(asked[number]),
            disturbances=plan.scenario.disturbances,
            client=plan.scenario.client,
            duration_s=plan.duration_s,
            drain_s=plan.scenario.window.drain_s,
            number=number,
            processes=processes,
        )
        for number in range(processes)
    ]
