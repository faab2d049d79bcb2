"""Adapters on the GPU: one flat arena, and for each slot records of where its tensors lie; see kernels.lora_tables."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_adapters.base_spec import BaseSpec
from loraplex_adapters.compatibility import LoraWeights
from loraplex_server.engine.adapter_arena import (
    CopyIsOver,
    CopyMark,
    FreeExtents,
    PackedAdapter,
    Placement,
    projection_ends,
)
from loraplex_server.engine.pinned_reads import PinnedReads
from loraplex_server.kernels.lora_tables import ARENA_UNIT, RECORD_FIELDS, LoraTables, projection_record
from loraplex_server.model.projections import PROJECTIONS

_TURN_ELEMENTS = 2**22  # copied to the device in one go: as much as is read at a time, some 160 µs at 50 GB/s


class GpuAdapterLayout:
    """Packs an adapter on the host as the arena holds it: layer by layer, of each projection A and then each B."""

    def __init__(self, spec: BaseSpec) -> None:
        """Raises ValueError where a module's sizes do not allow 16-byte loads."""
        sizes = [size for shape in spec.module_shapes.values() for size in shape]
        if any(size % ARENA_UNIT for size in sizes):
            raise ValueError(f"LoRA on a GPU needs module sizes that are multiples of {ARENA_UNIT}: {sizes}")
        self._spec = spec

    def pack(self, weights: LoraWeights, dtype: torch.dtype) -> PackedAdapter:
        """Copy an adapter's tensors into one flat host tensor; scaling is folded into B here."""
        ranks = {key: module.rank for key, module in weights.modules.items()}
        flat = torch.empty(self.num_elements(ranks), dtype=dtype)
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

    def projection_ends(self, ranks: dict[tuple[int, str], int]) -> list[int]:
        return projection_ends(self._spec, ranks)

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


class _CopyEvent:
    """Implements `CopyMark`."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def is_over(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]


class GpuAdapterArena(FreeExtents):
    """The buffer and the records on the device. Implements `AdapterMemory`.

    Weights are copied on a stream of their own, beside the steps in flight, which have no use for an extent that was
    free. No step waits for it: an adapter is published once its copy is known to be over. Records are written, and
    weights moved, between steps, since even a row whose sequence has ended follows them.
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
        self._reads = PinnedReads()
        self._copies: torch.cuda.Stream | None = None
        self._shifted: torch.cuda.Event | None = None  # behind the last move that no copy has waited for
        host_records = torch.zeros(
            num_slots, spec.num_layers, len(PROJECTIONS), RECORD_FIELDS, dtype=torch.int32
        )
        self.tables = LoraTables(
            arena=torch.zeros(num_elements, dtype=dtype, device=device),
            records=torch.zeros_like(host_records, device=device),
            host_records=host_records,
        )
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._reads.reserve(self.tables.records[0].numel())
            self._copies.wait_stream(torch.cuda.current_stream(device))  # the zeros come first

    @property
    def element_bytes(self) -> int:
        return self.tables.arena.element_size()

    def projection_ends(self, ranks: dict[tuple[int, str], int]) -> list[int]:
        return self._layout.projection_ends(ranks)

    def copy(self, target: int, source: Tensor) -> None:
        """`source` is pinned, and stays as it is until a mark behind the copy is over, unless the copy was given up."""
        weights = self.tables.arena[target : target + source.numel()]
        if self._copies is None:
            weights.copy_(source)
            return
        with torch.cuda.stream(self._copies):
            if self._shifted is not None:  # what lay there may be on the move in front of a step in flight
                self._copies.wait_event(self._shifted)
                self._shifted = None
            # No step waits behind these: kernels read from pinned memory whatever else goes to a running engine.
            for start in range(0, source.numel(), _TURN_ELEMENTS):
                turn = slice(start, start + _TURN_ELEMENTS)
                weights[turn].copy_(source[turn], non_blocking=True)

    def mark(self) -> CopyMark:
        if self._copies is None:
            return CopyIsOver()
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._copies)
        return _CopyEvent(event)

    def shift(self, source: int, target: int, length: int) -> None:
        arena = self.tables.arena
        moved = arena[source : source + length]
        if abs(source - target) < length:
            moved = moved.clone()
        arena[target : target + length].copy_(moved)
        if self._copies is not None:
            self._shifted = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._shifted.record()

    def publish(self, slot: int, placement: Placement) -> None:
        records = self._layout.records(placement.ranks, placement.start)
        if placement.old_start != placement.start:
            old = self._layout.records(placement.ranks, placement.old_start)
            records.view(-1, RECORD_FIELDS)[placement.num_moved :] = old.view(-1, RECORD_FIELDS)[
                placement.num_moved :
            ]
        self.tables.host_records[slot].copy_(records)
        target = self.tables.records[slot]
        if self._copies is None:
            target.copy_(records)
        else:
            self._reads.write(records.view(-1), target.view(-1))
