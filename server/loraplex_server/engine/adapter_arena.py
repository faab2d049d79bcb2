"""One flat buffer that holds the weights of all active adapters.

An adapter is one contiguous extent, laid out alike on the host and on the device, so that activating it is one copy.
Within an extent, layer by layer and projection by projection: Aᵀ of the projection's modules side by side, then each
module's scaling · Bᵀ. With one rank r for all modules every tensor sits at r × a constant of the base; true ranks, no
padding.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import LoraWeights
from loraplex_server.kernels.lora import LoraLayers, LoraPart, LoraProjection
from loraplex_server.model.projections import PROJECTIONS, module_slices


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter's weights on the host in the arena's layout."""

    digest: str
    flat: Tensor  # [num_elements] in the arena's dtype
    ranks: dict[tuple[int, str], int]  # (layer, module) -> rank; absent: untouched


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of elements of the arena."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an adapter's weights are, also while they move: its first projections have gone ahead.

    `num_moved` counts the pairs of layer and projection, in order, that lie in the extent that begins at `start`; the
    others lie in the one that begins at `old_start`.
    """

    ranks: dict[tuple[int, str], int]  # (layer, module) -> rank
    start: int
    old_start: int
    num_moved: int

    @classmethod
    def at(cls, start: int, ranks: dict[tuple[int, str], int]) -> Placement:
        """Of an adapter that does not move."""
        return cls(ranks, start, start, 0)


class CopyMark(Protocol):
    """A moment in a queue of copies."""

    def is_over(self) -> bool:
        """Whether all that was queued before has been copied; never waits."""
        ...


class AdapterMemory(Protocol):
    """Where the weights of active adapters are; see `AdapterArena` and `GpuAdapterArena`.

    Extents are the caller's to keep: nothing here knows whose they are.
    """

    @property
    def capacity(self) -> int: ...

    @property
    def element_bytes(self) -> int: ...

    @property
    def num_free(self) -> int: ...

    @property
    def largest_free(self) -> int: ...

    def allocate(self, length: int) -> Extent | None: ...

    def take(self, extent: Extent) -> None: ...

    def free(self, extent: Extent) -> None: ...

    def projection_ends(self, ranks: dict[tuple[int, str], int]) -> list[int]:
        """Where each (layer, projection) of an extent ends, in elements from its start; untouched ones are empty."""
        ...

    def copy(self, target: int, source: Tensor) -> None:
        """Queue the copy of host weights [elements] to the elements from `target` on, beside the steps."""
        ...

    def mark(self) -> CopyMark:
        """The moment behind all copies queued so far."""
        ...

    def shift(self, source: int, target: int, length: int) -> None:
        """Move elements within the arena, behind the steps launched so far; the runs may overlap."""
        ...

    def publish(self, slot: int, placement: Placement) -> None:
        """From the next step on, the slot is the adapter that lies there."""
        ...


def projection_ends(spec: BaseSpec, ranks: dict[tuple[int, str], int]) -> list[int]:
    """See `AdapterMemory.projection_ends`; alike in every layout."""
    ends = []
    end = 0
    for layer in range(spec.num_layers):
        for modules in PROJECTIONS.values():
            end += sum(ranks.get((layer, name), 0) * sum(spec.module_shapes[name]) for name in modules)
            ends.append(end)
    return ends


class AdapterLayout:
    """Where each tensor of an adapter lies in its extent, given the base and the adapter's ranks."""

    def __init__(self, spec: BaseSpec) -> None:
        self._spec = spec
        self._slices = module_slices(spec)

    def pack(self, weights: LoraWeights, dtype: torch.dtype) -> PackedAdapter:
        """Copy an adapter's tensors into one flat host tensor; scaling is folded into B here."""
        ranks = {key: module.rank for key, module in weights.modules.items()}
        flat = torch.empty(self.num_elements(ranks), dtype=dtype)
        for layer, projections in enumerate(self.views(flat, ranks)):
            for name, projection in projections.items():
                parts = iter(projection.parts)
                for module_name in PROJECTIONS[name]:
                    module = weights.modules.get((layer, module_name))
                    if module is None:
                        continue
                    part = next(parts)
                    projection.a[:, part.rank_start : part.rank_stop].copy_(module.a.t())
                    part.b.copy_((module.b.float() * module.scaling).t())
        return PackedAdapter(weights.digest, flat, ranks)

    def num_elements(self, ranks: dict[tuple[int, str], int]) -> int:
        """Elements of an adapter's extent."""
        return sum(rank * sum(self._spec.module_shapes[module]) for (_, module), rank in ranks.items())

    def projection_ends(self, ranks: dict[tuple[int, str], int]) -> list[int]:
        return projection_ends(self._spec, ranks)

    def views(self, flat: Tensor, ranks: dict[tuple[int, str], int]) -> LoraLayers:
        """The tensors of an extent as views of `flat` [num_elements]."""
        layers = LoraLayers()
        offset = 0
        for layer in range(self._spec.num_layers):
            projections: dict[str, LoraProjection] = {}
            for name, modules in PROJECTIONS.items():
                touched = [(module, ranks[layer, module]) for module in modules if (layer, module) in ranks]
                if touched:
                    projections[name], offset = self._projection(flat, offset, touched)
            layers.append(projections)
        return layers

    def _projection(
        self, flat: Tensor, offset: int, touched: list[tuple[str, int]]
    ) -> tuple[LoraProjection, int]:
        in_features = self._spec.module_shapes[touched[0][0]][0]
        total_rank = sum(rank for _, rank in touched)
        a = flat[offset : offset + in_features * total_rank].view(in_features, total_rank)
        offset += a.numel()
        parts = []
        rank_start = 0
        for module, rank in touched:
            columns = self._slices[module]
            out_features = columns.column_stop - columns.column_start
            b = flat[offset : offset + rank * out_features].view(rank, out_features)
            offset += b.numel()
            parts.append(
                LoraPart(columns.column_start, columns.column_stop, rank_start, rank_start + rank, b)
            )
            rank_start += rank
        return LoraProjection(a, tuple(parts)), offset


class FreeExtents:
    """The free parts of a buffer. Takes no locks; whoever owns the buffer owns this."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity  # elements in all
        # In order of start, never adjacent to one another.
        self._free = [Extent(0, capacity)] if capacity else []

    @property
    def num_free(self) -> int:
        """Elements in free extents, which need not be contiguous."""
        return sum(extent.length for extent in self._free)

    @property
    def largest_free(self) -> int:
        """Elements of the largest free extent."""
        return max((extent.length for extent in self._free), default=0)

    def allocate(self, length: int) -> Extent | None:
        """The first free extent that fits, cut to `length` elements; None if none does."""
        for free in self._free:
            if free.length >= length:
                extent = Extent(free.start, length)
                self.take(extent)
                return extent
        return None

    def take(self, extent: Extent) -> None:
        """Allocate elements that are known to be free."""
        for index, free in enumerate(self._free):
            if free.start <= extent.start and extent.stop <= free.stop:
                before = Extent(free.start, extent.start - free.start)
                behind = Extent(extent.stop, free.stop - extent.stop)
                self._free[index : index + 1] = [rest for rest in (before, behind) if rest.length]
                return
        raise AssertionError(f"{extent} is not free")

    def free(self, extent: Extent) -> None:
        """Give an extent back and join it with its free neighbours."""
        joined: list[Extent] = []
        for other in sorted([*self._free, extent], key=lambda e: e.start):
            if joined and joined[-1].stop == other.start:
                joined[-1] = Extent(joined[-1].start, joined[-1].length + other.length)
            else:
                joined.append(other)
        self._free = joined


class CopyIsOver:
    """The mark of a memory that copies at once."""

    def is_over(self) -> bool:
        return True


class AdapterArena(FreeExtents):
    """The buffer, and the weights in each slot as views of it. Implements `AdapterMemory`."""

    def __init__(self, num_elements: int, dtype: torch.dtype, layout: AdapterLayout) -> None:
        super().__init__(num_elements)
        self._buffer = torch.empty(num_elements, dtype=dtype)
        self._layout = layout
        self._layers_of_slot: dict[int, LoraLayers] = {}

    @property
    def element_bytes(self) -> int:
        return self._buffer.element_size()

    def projection_ends(self, ranks: dict[tuple[int, str], int]) -> list[int]:
        return self._layout.projection_ends(ranks)

    def copy(self, target: int, source: Tensor) -> None:
        """At once: no step runs meanwhile."""
        self._buffer[target : target + source.numel()].copy_(source)

    def mark(self) -> CopyMark:
        return CopyIsOver()

    def shift(self, source: int, target: int, length: int) -> None:
        start, size = self._buffer.data_ptr(), self.element_bytes
        ctypes.memmove(start + target * size, start + source * size, length * size)

    def publish(self, slot: int, placement: Placement) -> None:
        """The slot's former adapter is forgotten."""
        layers = self._views(placement.start, placement.ranks)
        if placement.num_moved < len(layers) * len(PROJECTIONS) and placement.old_start != placement.start:
            layers = _merged(layers, self._views(placement.old_start, placement.ranks), placement.num_moved)
        self._layers_of_slot[slot] = layers

    def layers_of_slot(self, slot: int) -> LoraLayers:
        """The weights in a slot that was published."""
        return self._layers_of_slot[slot]

    def _views(self, start: int, ranks: dict[tuple[int, str], int]) -> LoraLayers:
        return self._layout.views(self._buffer[start : start + self._layout.num_elements(ranks)], ranks)


def _merged(moved: LoraLayers, others: LoraLayers, num_moved: int) -> LoraLayers:
    """The first `num_moved` projections of one and the rest of the other."""
    layers = LoraLayers()
    for layer, (new, old) in enumerate(zip(moved, others, strict=True)):
        first = layer * len(PROJECTIONS)
        layers.append(
            {
                name: (new if first + index < num_moved else old)[name]
                for index, name in enumerate(PROJECTIONS)
                if name in new
            }
        )
    return layers
