"""Adapters that are read into the host cache: which ones, in which order, and who holds them there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loraplex_server.engine.adapter_load import AdapterLoad, Stage
from loraplex_server.engine.adapter_loader import AdapterLoader, HostWeights
from loraplex_server.engine.host_cache import HostCache


class AdapterReads:
    """The host's side of loads. Owned by the engine's thread."""

    def __init__(self, loader: AdapterLoader, cache: HostCache) -> None:
        self._loader = loader
        self._cache = cache
        self._largest_elements = 0  # of all adapters that were read

    def begin(self, loads: Sequence[AdapterLoad], may_read: Callable[[AdapterLoad], bool]) -> None:
        """As many reads as may be under way, of loads in order of first wish."""
        while self._may_begin(loads):
            queued = [load for load in loads if load.stage is Stage.QUEUED and may_read(load)]
            if not queued:
                return
            # What sequences wait for comes before the rest.
            load = next((load for load in queued if load.is_awaited), queued[0])
            if not self.hold_if_cached(load):
                load.reading = self._loader.read(load.digest)

    def hold_if_cached(self, load: AdapterLoad) -> bool:
        """Keep the host copy for the load, if there is one."""
        packed = self._cache.hold(load.digest)
        if packed is None:
            return False
        self.take(load, HostWeights.of(packed))
        return True

    def take(self, load: AdapterLoad, weights: HostWeights | None) -> None:
        """What the load has now, as far as it was read; None: an attempt was given up."""
        load.weights = weights
        if weights is not None:
            load.num_elements = weights.num_elements
            self._largest_elements = max(self._largest_elements, load.num_elements)

    def let_go(self, load: AdapterLoad) -> None:
        """Give back the hold on the host copy."""
        if load.weights is not None:
            load.weights = None
            self._cache.release(load.digest)

    def drop(self, digest: str) -> None:
        """Keep no host copy, once nobody holds it."""
        self._cache.drop(digest)

    def _may_begin(self, loads: Sequence[AdapterLoad]) -> bool:
        """No more ahead than the host cache holds besides what is there and waits.

        Until its size is known, an adapter is taken to be as large as the largest so far.
        """
        held = [load for load in loads if load.reading is not None or load.weights is not None]
        num_reads = sum(load.reading is not None for load in held)
        num_elements = sum(load.num_elements or self._largest_elements for load in held)
        return num_reads < self._loader.max_reads and num_elements < self._cache.capacity
