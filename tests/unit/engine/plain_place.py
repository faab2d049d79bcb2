"""Host memory for one adapter, without a cache behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_server.engine.adapter_arena import PackedAdapter
from loraplex_server.engine.adapter_loader import AdapterReader


class PlainPlace:
    """Implements `HostPlace`, and remembers what was said of each attempt."""

    def __init__(self, digest: str, dtype: torch.dtype) -> None:
        self._digest = digest
        self._dtype = dtype
        self.packed: PackedAdapter | None = None
        self.checked_of_attempt: list[list[int]] = []

    def begin(self, num_elements: int, ranks: dict[tuple[int, str], int]) -> Tensor:
        assert self.packed is None, "the former attempt was not given up"
        self.packed = PackedAdapter(self._digest, torch.empty(num_elements, dtype=self._dtype), ranks)
        self.checked_of_attempt.append([])
        return self.packed.flat

    def checked(self, num_elements: int) -> None:
        self.checked_of_attempt[-1].append(num_elements)

    def give_up(self) -> None:
        self.packed = None


def read_with(reader: AdapterReader, digest: str, dtype: torch.dtype) -> PackedAdapter:
    """What the reader reads."""
    place = PlainPlace(digest, dtype)
    reader(digest, place)
    assert place.packed is not None
    return place.packed
