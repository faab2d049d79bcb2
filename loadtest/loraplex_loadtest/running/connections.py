"""The connections of one generator, and when they are replaced."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

from loraplex_loadtest.scenario import Client
from loraplex_loadtest.targets.connect import connect
from loraplex_loadtest.targets.target import Question, Sink, TargetAddress


class PooledConnection:
    """A connection that closes behind its last stream once it is retired."""

    def __init__(self, address: TargetAddress, number: int) -> None:
        self._connection = connect(address)
        self.number = number
        self.asked = 0
        self.running = 0
        self.is_retired = False

    async def open(self) -> None:
        await self._connection.open()

    def prepare(self, question: Question) -> Any:
        return self._connection.prepare(question)

    async def ask(self, prepared: Any, deadline_s: float, sink: Sink) -> None:
        await self._connection.ask(prepared, deadline_s, sink)

    async def close(self) -> None:
        await self._connection.close()


class ConnectionPool:
    """Requests take the connections in turn. The first ones are open before the run; one that is opened later has its
    connecting charged to its first request."""

    def __init__(self, address: TargetAddress, client: Client) -> None:
        self._address = address
        self._reopen_every = client.reopen_every
        self._numbers = count()
        self._open = [self._new() for _ in range(client.connections)]
        self._turn = 0
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await asyncio.gather(*(connection.open() for connection in self._open))

    def prepare(self, question: Question) -> Any:
        return self._open[0].prepare(question)

    def take(self) -> PooledConnection:
        """For one request; give it back when the request has ended."""
        place = self._turn % len(self._open)
        self._turn += 1
        connection = self._open[place]
        if self._reopen_every and connection.asked >= self._reopen_every:
            self._replace(place)
            connection = self._open[place]
        connection.asked += 1
        connection.running += 1
        return connection

    def give_back(self, connection: PooledConnection) -> None:
        connection.running -= 1
        self._close_if_idle(connection)

    def renew(self) -> None:
        """New connections for all requests to come."""
        for place in range(len(self._open)):
            self._replace(place)

    async def close(self) -> None:
        """All of them, running streams included."""
        await asyncio.gather(*self._closing, *(connection.close() for connection in self._open))

    def _new(self) -> PooledConnection:
        return PooledConnection(self._address, next(self._numbers))

    def _replace(self, place: int) -> None:
        retired, self._open[place] = self._open[place], self._new()
        retired.is_retired = True
        self._close_if_idle(retired)

    def _close_if_idle(self, connection: PooledConnection) -> None:
        if connection.is_retired and not connection.running:
            task = asyncio.create_task(connection.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
