"""Random adapters in a poisoned arena, and batches of the five adapter mixes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.lora_cuda import plan_ints
from loraplex_server.kernels.lora_scratch import LoraScratch, max_rank_groups
from loraplex_server.kernels.lora_tables import (
    RECORD_FIELDS,
    LoraTables,
    ProjectionShape,
    plan_row_tiles,
    projection_record,
    row_tile_table,
)

MIXES = ("identical", "distinct", "uniform", "zipf", "skewed")


def slots_of_rows(mix: str, num_rows: int, num_slots: int, generator: torch.Generator) -> list[int]:
    """A slot per row, NO_SLOT for every seventh row or so of the random mixes; sorted, as the engine sorts them."""
    match mix:
        case "identical":
            return [0] * num_rows
        case "distinct":
            return sorted(row % num_slots for row in range(num_rows))
        case "uniform":
            weights = torch.ones(num_slots + 1)
        case "zipf":
            weights = 1.0 / torch.arange(1, num_slots + 2)
        case _:
            weights = torch.tensor([0.9, *[0.1 / num_slots] * num_slots])
    drawn = torch.multinomial(weights, num_rows, replacement=True, generator=generator)
    return sorted(int(slot) - 1 for slot in drawn)


def runs_of(slots: list[int]) -> list[tuple[int, int]]:
    """[(slot, rows)] of consecutive equal slots."""
    runs: list[tuple[int, int]] = []
    for slot in slots:
        if runs and runs[-1][0] == slot:
            runs[-1] = (slot, runs[-1][1] + 1)
        else:
            runs.append((slot, 1))
    return runs


def tile_table(slots: list[int], tile_rows: int, device: torch.device, spare: int = 2) -> Tensor:
    """The row tiles of a batch with `spare` unused entries behind."""
    tiles = plan_row_tiles(runs_of(slots), tile_rows)
    return row_tile_table(tiles, len(tiles) + spare).to(device)


@dataclass(frozen=True)
class Adapters:
    """Adapters of one projection in one layer; `tables` has two layers, and only the second is filled."""

    tables: LoraTables
    projection: ProjectionShape
    layer: int
    max_total_rank: int


def random_adapters(
    projection: ProjectionShape,
    ranks: list[tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> Adapters:
    """One adapter per entry of `ranks`, each a rank per module. Whatever no adapter owns in the arena is NaN."""
    records = torch.full((len(ranks), 2, 4, RECORD_FIELDS), 1 << 20, dtype=torch.int32)
    pieces: list[Tensor] = []
    end = 0

    def place(tensor: Tensor) -> int:
        nonlocal end
        start = end
        pieces.extend((tensor.flatten(), torch.full((24,), torch.nan)))
        end += tensor.numel() + 24
        return start

    for slot, module_ranks in enumerate(ranks):
        total = sum(module_ranks)
        a = torch.randn(total, projection.in_features, generator=generator) * projection.in_features**-0.5
        a_offset = place(a)
        b_offsets = [
            place(torch.randn(rank, width, generator=generator))
            for rank, width in zip(module_ranks, projection.widths, strict=True)
        ]
        records[slot, 1, projection.index] = torch.tensor(
            projection_record(a_offset, b_offsets, list(module_ranks)), dtype=torch.int32
        )
    arena = torch.cat(pieces).to(dtype).to(device)
    return Adapters(
        LoraTables(arena, records.to(device), records), projection, 1, max(1, *(sum(r) for r in ranks))
    )


_GUARD = 64  # elements behind each buffer
_NOT_PLANNED = 0x7F7F7F7F


def poisoned_scratch(splits: int, shrunk: Tensor, num_rows: int, num_tiles: int) -> LoraScratch:
    """Scratch just large enough for so many parts and rows, which makes results wrong wherever nothing is written."""
    rank_stride, device = shrunk.shape[1], shrunk.device
    num_parts, num_plan_ints = splits * num_rows * rank_stride, plan_ints(2, 4, num_tiles)
    return LoraScratch(
        torch.full((num_parts + _GUARD,), torch.nan, device=device)[:num_parts],
        torch.zeros(num_tiles * max_rank_groups(rank_stride), dtype=torch.int32, device=device),
        torch.full((num_plan_ints + _GUARD,), _NOT_PLANNED, dtype=torch.int32, device=device)[:num_plan_ints],
    )


def assert_left_in_order(scratch: LoraScratch) -> None:
    """Counters are zero again, and nothing was written behind the buffers."""
    assert not scratch.counters.any()
    assert scratch.parts.as_strided((_GUARD,), (1,), scratch.parts.numel()).isnan().all()
    assert (scratch.plan.as_strided((_GUARD,), (1,), scratch.plan.numel()) == _NOT_PLANNED).all()


def wider(tensor: Tensor) -> Tensor:
    """The same values, as a part of rows that are longer by 16 elements."""
    buffer = torch.full(
        (tensor.shape[0], tensor.shape[1] + 16), 3.0, dtype=tensor.dtype, device=tensor.device
    )
    buffer[:, : tensor.shape[1]] = tensor
    return buffer[:, : tensor.shape[1]]
