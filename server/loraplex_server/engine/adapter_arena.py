"""One flat buffer that holds the weights of all resident adapters.

An adapter is one contiguous extent, laid out alike on the host and on the device, so that activating it is one copy.
Within an extent, layer by layer and projection by projection: Aᵀ of the projection's modules side by side, then each
module's scaling · Bᵀ. With one rank r for all modules every tensor sits at r × a constant of the base; true ranks, no
padding.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """The free parts of a buffer. Owned by the engine thread; takes no locks."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity  # elements in all
        self._free = [Extent(0, capacity)]  # in order of start, never adjacent to one another

    @property
    def num_free(self) -> int:
        """Elements in free extents, which need not be contiguous."""
        return sum(extent.length for extent in self._free)

    def allocate(self, length: int) -> Extent | None:
        """The first free extent that fits, cut to `length` elements; None if none does."""
        for index, extent in enumerate(self._free):
            if extent.length >= length:
                rest = Extent(extent.start + length, extent.length - length)
                self._free[index : index + 1] = [rest] if rest.length else []
                return Extent(extent.start, length)
        return None

    def free(self, extent: Extent) -> None:
        """Give an extent back and join it with its free neighbours."""
        joined: list[Extent] = []
        for other in sorted([*self._free, extent], key=lambda e: e.start):
            if joined and joined[-1].start + joined[-1].length == other.start:
                joined[-1] = Extent(joined[-1].start, joined[-1].length + other.length)
            else:
                joined.append(other)
        self._free = joined


class AdapterArena(FreeExtents):
    """The buffer, and the weights in each slot as views of it."""

    def __init__(self, num_elements: int, dtype: torch.dtype, layout: AdapterLayout) -> None:
        super().__init__(num_elements)
        self._buffer = torch.empty(num_elements, dtype=dtype)
        self._layout = layout
        self._layers_of_slot: dict[int, LoraLayers] = {}

    def place(self, slot: int, extent: Extent, packed: PackedAdapter) -> None:
        """Copy an adapter into an extent in one go; the slot's former adapter is forgotten."""
        view = self._buffer[extent.start : extent.start + extent.length]
        view.copy_(packed.flat)
        self._layers_of_slot[slot] = self._layout.views(view, packed.ranks)

    def layers_of_slot(self, slot: int) -> LoraLayers:
        """The weights in a slot that was placed."""
        return self._layers_of_slot[slot]
