"""An arena whose copies land when the test says so, as on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_adapters.base_spec import BaseSpec
from loraplex_server.engine.adapter_arena import CopyMark, FreeExtents, Placement, projection_ends


class _Mark:
    def __init__(self, memory: SlowMemory, number: int) -> None:
        self._memory = memory
        self._number = number

    def is_over(self) -> bool:
        return self._memory.num_landed >= self._number


class SlowMemory(FreeExtents):
    """Implements `AdapterMemory`. A copy reads its source when it lands, not when it is queued."""

    element_bytes = 4

    def __init__(self, capacity: int, spec: BaseSpec) -> None:
        super().__init__(capacity)
        self._spec = spec
        self.buffer = torch.full((capacity,), float("nan"))
        self.placements: dict[int, Placement] = {}
        self.queue: list[tuple[int, Tensor]] = []
        self.num_queued = self.num_landed = 0  # copies

    @property
    def num_ahead(self) -> int:
        """Elements that are queued and have not landed."""
        return sum(source.numel() for _, source in self.queue)

    def projection_ends(self, ranks: dict[tuple[int, str], int]) -> list[int]:
        return projection_ends(self._spec, ranks)

    def copy(self, target: int, source: Tensor) -> None:
        self.queue.append((target, source))
        self.num_queued += 1

    def mark(self) -> CopyMark:
        return _Mark(self, self.num_queued)

    def land(self, num_copies: int | None = None) -> None:
        """The oldest ones; all of them without a number."""
        for target, source in self.queue[:num_copies]:
            self.buffer[target : target + source.numel()] = source
            self.num_landed += 1
        del self.queue[:num_copies]

    def shift(self, source: int, target: int, length: int) -> None:
        self.buffer[target : target + length] = self.buffer[source : source + length].clone()

    def publish(self, slot: int, placement: Placement) -> None:
        self.placements[slot] = placement

    def weights(self, slot: int) -> Tensor:
        """What a step would find in a slot that was published."""
        placement = self.placements[slot]
        found, start = [], 0
        for index, end in enumerate(self.projection_ends(placement.ranks)):
            base = placement.start if index < placement.num_moved else placement.old_start
            found.append(self.buffer[base + start : base + end])
            start = end
        return torch.cat(found)
