"""Adapters on the GPU: one flat arena, and for each slot records of where its tensors lie; see kernels.lora_tables."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import LoraWeights
from loraplex_server.engine.adapter_arena import Extent, FreeExtents, PackedAdapter
from loraplex_server.kernels.lora_tables import ARENA_UNIT, RECORD_FIELDS, LoraTables, projection_record
from loraplex_server.model.projections import PROJECTIONS


class GpuAdapterLayout:
    """Packs an adapter on the host as the arena holds it: layer by layer, of each projection A and then each B."""

    def __init__(self, spec: BaseSpec, *, pin_memory: bool) -> None:
        """Raises ValueError where a module's sizes do not allow 16-byte loads."""
        sizes = [size for shape in spec.module_shapes.values() for size in shape]
        if any(size % ARENA_UNIT for size in sizes):
            raise ValueError(f"LoRA on a GPU needs module sizes that are multiples of {ARENA_UNIT}: {sizes}")
        self._spec = spec
        self._pin_memory = pin_memory

    def pack(self, weights: LoraWeights, dtype: torch.dtype) -> PackedAdapter:
        """Copy an adapter's tensors into one flat host tensor; scaling is folded into B here."""
        ranks = {key: module.rank for key, module in weights.modules.items()}
        flat = torch.empty(self.num_elements(ranks), dtype=dtype, pin_memory=self._pin_memory)
        offset = 0
        for layer in range(self._spec.num_layers):
            for modules in PROJECTIONS.values():
                touched = [
                    weights.modules[layer, name] for name in modules if (layer, name) in weights.modules
                ]
                pieces = [module.a for module in touched]
                pieces += [(module.b.float() * module.scaling).t() for module in touched]
                for piece in pieces:
                    flat[offset : offset + piece.numel()].view(piece.shape).copy_(piece)
                    offset += piece.numel()
        return PackedAdapter(weights.digest, flat, ranks)

    def num_elements(self, ranks: dict[tuple[int, str], int]) -> int:
        """Elements of an adapter's extent."""
        return sum(rank * sum(self._spec.module_shapes[module]) for (_, module), rank in ranks.items())

    def records(self, ranks: dict[tuple[int, str], int], start: int) -> Tensor:
        """[layers, projections, RECORD_FIELDS] int32 of an adapter whose extent begins at element `start`."""
        records = []
        offset = start
        for layer in range(self._spec.num_layers):
            for modules in PROJECTIONS.values():
                module_ranks = [ranks.get((layer, module), 0) for module in modules]
                a_offset = offset
                offset += sum(module_ranks) * self._spec.module_shapes[modules[0]][0]
                b_offsets = []
                for module, rank in zip(modules, module_ranks, strict=True):
                    b_offsets.append(offset)
                    offset += rank * self._spec.module_shapes[module][1]
                records.append(projection_record(a_offset, b_offsets, module_ranks))
        return torch.tensor(records, dtype=torch.int32).view(
            self._spec.num_layers, len(PROJECTIONS), RECORD_FIELDS
        )


class GpuAdapterArena(FreeExtents):
    """The buffer and the records on the device.

    Weights are copied beside the steps in flight, which have no use for an extent that was free; the next step waits
    for the copy. Records are copied between steps, since even a row whose sequence has ended follows them.
    """

    def __init__(
        self,
        num_elements: int,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
        layout: GpuAdapterLayout,
        spec: BaseSpec,
    ) -> None:
        super().__init__(num_elements)
        self._layout = layout
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.tables = LoraTables(
            arena=torch.zeros(num_elements, dtype=dtype, device=device),
            records=torch.zeros(
                num_slots,
                spec.num_layers,
                len(PROJECTIONS),
                RECORD_FIELDS,
                dtype=torch.int32,
                device=device,
            ),
        )

    def place(self, slot: int, extent: Extent, packed: PackedAdapter) -> None:
        """Queue the copy of an adapter into an extent, in one piece, and of its records."""
        records = self._layout.records(packed.ranks, extent.start)
        weights = self.tables.arena[extent.start : extent.start + extent.length]
        if self._copies is None:
            weights.copy_(packed.flat)
        else:
            records = records.pin_memory()
            with torch.cuda.stream(self._copies):
                weights.copy_(packed.flat, non_blocking=True)
            torch.cuda.current_stream().wait_stream(self._copies)
        self.tables.records[slot].copy_(records, non_blocking=True)
