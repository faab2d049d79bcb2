"""Adapters as the registry holds them, in memory: looking up one that is known costs no database access."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from loraplex_adapters.names import AdapterName
from loraplex_adapters.releases import Adapter

DEFAULT_CAPACITY = 4096
"""Adapters kept; so memory does not grow with the number registered. One takes a few kilobytes."""


@dataclass(slots=True, eq=False)
class _Read:
    """One look into the registry."""

    name: AdapterName
    is_overtaken: bool = False  # by a change of the adapter, which it may have missed


class AdapterCache:
    """Least recently used go first. Owned by the event loop; reads the registry in threads.

    An entry is replaced only by one of a later revision. A read that was under way while its adapter changed is done
    again, so that what it saw before cannot come in afterwards.
    """

    def __init__(self, read: Callable[[AdapterName], Adapter], capacity: int = DEFAULT_CAPACITY) -> None:
        """`read` blocks, and raises AdapterNotFoundError or StorageError."""
        self._read = read
        self._capacity = capacity
        self._entries: OrderedDict[AdapterName, Adapter] = OrderedDict()
        self._reads: dict[AdapterName, asyncio.Task[Adapter]] = {}
        self._under_way: set[_Read] = set()

    def peek(self, name: AdapterName) -> Adapter | None:
        """What is known of it without asking."""
        return self._entries.get(name)

    async def get(self, name: AdapterName) -> Adapter:
        """Raises AdapterNotFoundError, and StorageError for one that is not known while the database is lost."""
        adapter = self._entries.get(name)
        if adapter is not None:
            self._entries.move_to_end(name)
            return adapter
        read = self._reads.get(name)
        if read is None:
            read = self._reads[name] = asyncio.create_task(self._fetch(name))
            read.add_done_callback(lambda task: self._ended(name, task))
        return await asyncio.shield(read)

    async def refresh(self, name: AdapterName) -> Adapter:
        """Read it again after a change, whatever is known. Raises as `get`."""
        self.changed(name)
        return await self._fetch(name)

    def changed(self, name: AdapterName) -> None:
        """Whoever reads it just now may have seen it as it was before."""
        for read in self._under_way:
            read.is_overtaken |= read.name == name

    def drop(self, name: AdapterName, revision: int) -> Adapter | None:
        """The adapter was deleted at `revision`; returns what was known of it, if that was older."""
        self.changed(name)
        known = self._entries.get(name)
        if known is None or known.revision > revision:
            return None
        return self._entries.pop(name)

    def clear(self) -> None:
        """Forget everything: changes were missed."""
        for read in self._under_way:
            read.is_overtaken = True
        self._entries.clear()

    async def _fetch(self, name: AdapterName) -> Adapter:
        while True:
            read = _Read(name)
            self._under_way.add(read)
            try:
                adapter = await asyncio.to_thread(self._read, name)
            finally:
                self._under_way.discard(read)
            if not read.is_overtaken:
                return self._keep(adapter)

    def _keep(self, adapter: Adapter) -> Adapter:
        known = self._entries.get(adapter.name)
        if known is not None and known.revision >= adapter.revision:
            return known
        self._entries[adapter.name] = adapter
        self._entries.move_to_end(adapter.name)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
        return adapter

    def _ended(self, name: AdapterName, task: asyncio.Task[Adapter]) -> None:
        self._reads.pop(name, None)
        if not task.cancelled():
            task.exception()  # told to whoever awaits it; without one it is no news
