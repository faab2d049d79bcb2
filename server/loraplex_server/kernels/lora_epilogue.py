"""What a kernel needs to add LoRA's second product to the rows that it reads anyway, in the same launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.lora_tables import RECORD_FIELDS, LoraTables, ProjectionShape
from loraplex_server.kernels.triton_runtime import require


@dataclass(frozen=True, slots=True)
class LoraEpilogue:
    """The arguments that `lora_shrink` was given. Its row tiles cover all rows, those of the base alone included."""

    shrunk: Tensor  # [rows, rank_stride] in the dtype of the arena
    tables: LoraTables
    row_tiles: Tensor  # [tiles, 4] int32
    layer: int
    projection: ProjectionShape
    tile_rows: int

    @property
    def record_start(self) -> int:
        """Element of `records` where slot 0's record of this layer and projection begins."""
        return (self.layer * self.tables.records.shape[2] + self.projection.index) * RECORD_FIELDS

    @property
    def slot_stride(self) -> int:
        """Elements of `records` per slot."""
        return self.tables.records.shape[1] * self.tables.records.shape[2] * RECORD_FIELDS

    @property
    def block_r(self) -> int:
        """Ranks per product: more where a few adapters cannot fill the device, as measured."""
        return 32 if 4 < self.row_tiles.shape[0] <= 16 else 16

    def check(self, rows: Tensor, widths: tuple[int, ...]) -> None:
        """Raises ValueError unless these fit `rows` and a projection with modules of these widths."""
        require(self.projection.widths == widths, f"modules {self.projection.widths} are not {widths}")
        require(all(width % 8 == 0 for width in widths), f"widths {widths}: not multiples of 8")
        require(
            self.shrunk.dtype == self.tables.arena.dtype
            and self.shrunk.is_contiguous()
            and self.shrunk.shape[0] >= rows.shape[0],
            f"shrunk {tuple(self.shrunk.shape)} does not hold the rows in the dtype of the arena",
        )
        require(
            self.row_tiles.dtype == torch.int32 and self.row_tiles.is_contiguous(), "row_tiles must be int32"
        )
