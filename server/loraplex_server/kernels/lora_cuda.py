"""LoRA's two products for small row tiles, in CUDA C++: on Hopper, in bf16.

A step is prepared first (lora_plan.cu). The blocks of the products (lora_shrink.cu, lora_expand.cu) take little of a
multiprocessor: a base product leaves little, and beside it is where they run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.cuda_driver import CudaKernel, device_index, load_kernel
from loraplex_server.kernels.lora_tables import LoraTables, ProjectionShape
from loraplex_server.kernels.product_kernels import has_cuda_products

PART_INPUTS = 1024  # of the first product, whose sum goes to memory
_WARPS = 4  # of a block
PLAN_DEFINES = {"WARPS": _WARPS, "ROWS": 8, "PART": PART_INPUTS}
SHRINK_DEFINES = PLAN_DEFINES | {"MINB": 4}
EXPAND_DEFINES = {"WARPS": _WARPS, "GROUPS": 2, "DEPTH": 2, "ITEMS": 2, "BATCH": 4, "MINB": 5}
_EXPAND_COLUMNS = _WARPS * 32 * EXPAND_DEFINES["GROUPS"]  # of one block
_TILE_INTS = 12
_MAX_TILES = 2048  # that shared memory holds beside what is under way


@dataclass(frozen=True, slots=True)
class ShrinkDepth:
    """How much of its weights a warp of the first product keeps under way. What is computed does not depend on it."""

    chunks: int  # of 32 inputs, of one stage
    stages: int

    @property
    def defines(self) -> dict[str, int]:
        """Compile-time parameters."""
        return SHRINK_DEFINES | {"CHUNKS": self.chunks, "STAGES": self.stages}

    def shared_bytes(self, num_tiles: int) -> int:
        """Dynamic shared memory of a block: weights and activations under way, and the row tiles."""
        return _WARPS * self.stages * self.chunks * 1536 + num_tiles * _TILE_INTS * 4


DEEP = ShrinkDepth(chunks=2, stages=3)
SHALLOW = ShrinkDepth(chunks=1, stages=2)
_DEEP_ROWS = 32  # beside more of them a base product leaves less shared memory


def has_cuda_lora(rows: Tensor, num_tiles: int) -> bool:
    """Whether the kernels run where the rows of activations lie, on their dtype and on so many row tiles."""
    return rows.dtype == torch.bfloat16 and num_tiles <= _MAX_TILES and has_cuda_products(rows.device)


def num_parts(in_features: int) -> int:
    """Sums that the first product leaves of each row and rank."""
    return -(-in_features // PART_INPUTS)


def plan_ints(num_layers: int, num_projections: int, num_tiles: int) -> int:
    """Length of a plan."""
    return num_layers * num_projections * num_tiles * _TILE_INTS


def launch_plan(tables: LoraTables, row_tiles: Tensor, in_features: Sequence[int], plan: Tensor) -> None:
    """Prepare the launches of a step, of all layers, for projections of so many inputs."""
    num_layers, num_projections = tables.records.shape[1:3]
    num_tiles = row_tiles.shape[0]
    _plan_kernel(device_index(plan.device)).launch(
        (num_projections, num_layers),
        (tables.records, row_tiles, plan, num_tiles, tables.slot_stride, *in_features),
    )


def launch_lora(
    x: Tensor,
    y: Tensor,
    parts: Tensor,
    rank_stride: int,
    tables: LoraTables,
    plan: Tensor,
    num_tiles: int,
    layer: int,
    projection: ProjectionShape,
    adds: bool,
) -> None:
    """Both products, of a step that `launch_plan` has prepared; operands as `lora_apply` has checked them.

    parts  [num_parts, n, rank_stride] fp32, scratch
    """
    num_rows, in_features = x.shape
    part_stride = num_rows * rank_stride
    device = device_index(x.device)
    first_tile = (layer * tables.records.shape[2] + projection.index) * num_tiles
    tiles = plan[first_tile * _TILE_INTS :]
    depth = DEEP if num_rows <= _DEEP_ROWS else SHALLOW
    _shrink_kernel(device, depth).launch(
        (_multiprocessors(device), 1),
        (x, parts, tables.arena, tiles, num_tiles, x.stride(0), part_stride, in_features, rank_stride),
        overlap=True,
        shared_bytes=depth.shared_bytes(num_tiles),
    )
    _expand_kernel(device, adds).launch(
        (sum(-(-width // _EXPAND_COLUMNS) for width in projection.widths), num_tiles),
        (
            *(y, parts, tables.arena, tiles, y.stride(0), *projection.column_ends),
            *(num_parts(in_features), part_stride, rank_stride),
        ),
        overlap=True,
    )


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _plan_kernel(device: int) -> CudaKernel:
    with torch.cuda.device(device):
        return load_kernel("lora_plan.cu", "lora_plan", PLAN_DEFINES, 32 * _WARPS)


@functools.cache
def _shrink_kernel(device: int, depth: ShrinkDepth) -> CudaKernel:
    most = depth.shared_bytes(_MAX_TILES)
    with torch.cuda.device(device):
        return load_kernel("lora_shrink.cu", "lora_shrink", depth.defines, 32 * _WARPS, most)


@functools.cache
def _expand_kernel(device: int, adds: bool) -> CudaKernel:
    with torch.cuda.device(device):
        return load_kernel("lora_expand.cu", "lora_expand", EXPAND_DEFINES | {"ADD": int(adds)}, 32 * _WARPS)
