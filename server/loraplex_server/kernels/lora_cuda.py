"""LoRA's two products for rows that decode, in CUDA C++ (lora_shrink.cu, lora_expand.cu): on Hopper, in bf16.

Their blocks take little of a multiprocessor: a base product leaves little, and beside it is where they run.
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

PART_INPUTS = 1024  # whose products are added up before they go to memory
_WARPS = 4  # of a block
_LAUNCH = {"WARPS": _WARPS, "MINB": 4}
PLAN_DEFINES = {"WARPS": _WARPS}
SHRINK_DEFINES = _LAUNCH | {"PART": PART_INPUTS}
EXPAND_DEFINES = _LAUNCH | {"BATCH": 4}


@dataclass(frozen=True, slots=True)
class Depth:
    """How much of its weights a warp keeps under way. What is computed does not depend on it."""

    chunks: int  # of 32 inputs, of a stage of the first product
    shrink_stages: int
    columns: int  # of a unit of the second product
    expand_stages: int


DEEP = Depth(chunks=2, shrink_stages=3, columns=128, expand_stages=2)
SHALLOW = Depth(chunks=1, shrink_stages=2, columns=64, expand_stages=2)
_DEEP_ROWS = 32  # beside more of them a base product leaves less shared memory
_PLAN_INTS = 16  # of a tile
_TILE_BYTES = 52  # in shared memory
_MAX_TILES = 2048


def has_cuda_lora(rows: Tensor) -> bool:
    """Whether the kernels run where the rows of activations lie, on their dtype."""
    return rows.dtype == torch.bfloat16 and has_cuda_products(rows.device)


def depth_of(num_rows: int, projection: ProjectionShape) -> Depth:
    """Such that a block finds room beside the base product of a projection."""
    del projection
    return DEEP if num_rows <= _DEEP_ROWS else SHALLOW


def plan_shapes(projections: Sequence[ProjectionShape], adds: Sequence[bool], device: torch.device) -> Tensor:
    """[depths, projections, 5] int32, what `launch_plan` knows of each projection."""
    shapes = [_shapes_at(depth, projections, adds) for depth in (DEEP, SHALLOW)]
    return torch.tensor(shapes, dtype=torch.int32, device=device)


def _shapes_at(depth: Depth, projections: Sequence[ProjectionShape], adds: Sequence[bool]) -> list[list[int]]:
    rows = []
    for projection, is_added in zip(projections, adds, strict=True):
        starts = (0, *projection.column_ends[:2])
        ends = projection.column_ends
        blocks = [-(-(end - start) // depth.columns) for start, end in zip(starts, ends, strict=True)]
        rows.append([-(-projection.in_features // PART_INPUTS), *blocks, int(is_added)])
    return rows


def plan_ints(num_layers: int, num_projections: int, num_tiles: int) -> int:
    """Length of a plan."""
    return num_layers * num_projections * num_tiles * _PLAN_INTS


def launch_plan(tables: LoraTables, row_tiles: Tensor, shapes: Tensor, num_rows: int, plan: Tensor) -> None:
    """Prepare the launches of a step: of all layers, and of the projections whose `plan_shapes` these are."""
    num_layers = tables.records.shape[1]
    shapes = shapes[int(num_rows > _DEEP_ROWS)]
    _plan_kernel(device_index(plan.device)).launch(
        (shapes.shape[0], num_layers),
        (tables.records, row_tiles, shapes, plan, row_tiles.shape[0], tables.slot_stride),
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

    parts  [in / PART_INPUTS, n, rank_stride] fp32, scratch
    """
    num_rows, in_features = x.shape
    part_stride = num_rows * rank_stride
    device = device_index(x.device)
    grid = (_multiprocessors(device), 1)
    start = (layer * tables.records.shape[2] + projection.index) * num_tiles * _PLAN_INTS
    weights = (tables.arena, plan[start:], num_tiles)
    depth = depth_of(num_rows, projection)
    _shrink_kernel(device, depth).launch(
        grid,
        (x, parts, *weights, x.stride(0), part_stride, in_features, rank_stride),
        overlap=True,
        shared_bytes=shrink_bytes(depth, num_tiles),
    )
    num_parts = -(-in_features // PART_INPUTS)
    _expand_kernel(device, depth, adds).launch(
        grid,
        (y, parts, *weights, y.stride(0), *projection.column_ends, num_parts, part_stride, rank_stride),
        overlap=True,
        shared_bytes=expand_bytes(depth, num_tiles),
    )


def shrink_defines(depth: Depth) -> dict[str, int]:
    """Compile-time parameters of the first product."""
    return SHRINK_DEFINES | {"CHUNKS": depth.chunks, "STAGES": depth.shrink_stages}


def expand_defines(depth: Depth, adds: bool) -> dict[str, int]:
    """... of the second product."""
    return EXPAND_DEFINES | {"COLUMNS": depth.columns, "STAGES": depth.expand_stages, "ADD": int(adds)}


def shrink_bytes(depth: Depth, num_tiles: int) -> int:
    """Dynamic shared memory of a block of the first product: weights and activations under way, and the row tiles."""
    return _WARPS * depth.shrink_stages * depth.chunks * 1536 + num_tiles * _TILE_BYTES


def expand_bytes(depth: Depth, num_tiles: int) -> int:
    """... of the second product: weights under way, and the row tiles."""
    return _WARPS * depth.expand_stages * depth.columns * 32 + num_tiles * _TILE_BYTES


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _plan_kernel(device: int) -> CudaKernel:
    with torch.cuda.device(device):
        return load_kernel("lora_plan.cu", "lora_plan", PLAN_DEFINES, 32 * _WARPS)


@functools.cache
def _shrink_kernel(device: int, depth: Depth) -> CudaKernel:
    shared_bytes = shrink_bytes(depth, _MAX_TILES)
    with torch.cuda.device(device):
        return load_kernel("lora_shrink.cu", "lora_shrink", shrink_defines(depth), 32 * _WARPS, shared_bytes)


@functools.cache
def _expand_kernel(device: int, depth: Depth, adds: bool) -> CudaKernel:
    defines, shared_bytes = expand_defines(depth, adds), expand_bytes(depth, _MAX_TILES)
    with torch.cuda.device(device):
        return load_kernel("lora_expand.cu", "lora_expand", defines, 32 * _WARPS, shared_bytes)
