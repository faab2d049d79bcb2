"""LoRA of one projection, both products, for all adapters of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from loraplex_server.kernels.lora_cuda import has_cuda_lora, launch_lora, launch_plan, num_parts, plan_ints
from loraplex_server.kernels.lora_expand import check_expand, lora_expand
from loraplex_server.kernels.lora_scratch import LoraScratch
from loraplex_server.kernels.lora_shrink import check_shrink, lora_shrink
from loraplex_server.kernels.lora_tables import SMALL_TILE_ROWS, LoraTables, ProjectionShape
from loraplex_server.kernels.triton_runtime import require


def takes_cuda_kernels(rows: Tensor, row_tiles: Tensor, tile_rows: int) -> bool:
    """Whether LoRA of activations like these is CUDA C++; otherwise it is Triton."""
    return tile_rows == SMALL_TILE_ROWS and has_cuda_lora(rows, row_tiles.shape[0])


def lora_prepare(
    scratch: LoraScratch,
    tables: LoraTables,
    row_tiles: Tensor,
    in_features: Sequence[int],
    tile_rows: int,
) -> None:
    """What all launches of a step would otherwise find out for themselves; once, ahead of its first `lora_apply`.

    in_features  of the projections, in the order of their numbers
    """
    if takes_cuda_kernels(tables.arena, row_tiles, tile_rows):
        _, num_layers, num_projections, _ = tables.records.shape
        needed = plan_ints(num_layers, num_projections, row_tiles.shape[0])
        require(scratch.plan.numel() >= needed, f"scratch is too small for a plan of {needed} integers")
        launch_plan(tables, row_tiles, in_features, scratch.plan)


def lora_apply(
    x: Tensor,
    y: Tensor,
    shrunk: Tensor,
    scratch: LoraScratch,
    tables: LoraTables,
    row_tiles: Tensor,
    layer: int,
    projection: ProjectionShape,
    tile_rows: int,
    *,
    adds: bool,
) -> None:
    """y += B (A x) in place, or y = B (A x), in a step that has been prepared.

    Operands as `lora_shrink` and `lora_expand` want them.

    shrunk  scratch of the Triton kernels; its rows, and so those of the CUDA kernels' parts, are as long as the
            largest sum of ranks of an adapter's modules, or longer

    Raises ValueError where an operand is not as it should be.
    """
    if takes_cuda_kernels(x, row_tiles, tile_rows):
        check_shrink(x, shrunk, tables, row_tiles, projection)
        check_expand(shrunk, y, tables, row_tiles, projection)
        needed = num_parts(x.shape[1]) * x.shape[0] * shrunk.shape[1]
        require(scratch.parts.numel() >= needed, f"scratch is too small for {needed} parts")
        require(y.stride(0) % 8 == 0 and y.data_ptr() % 16 == 0, "rows of y must be aligned to 16 bytes")
        plan = (tables, scratch.plan, row_tiles.shape[0], layer, projection)
        launch_lora(x, y, scratch.parts, shrunk.shape[1], *plan, adds)
        return
    lora_shrink(x, shrunk, scratch, tables, row_tiles, layer, projection, tile_rows)
    lora_expand(shrunk, y, tables, row_tiles, layer, projection, tile_rows, adds=adds)
