"""LoRA's two products for rows that decode, in CUDA C++ (lora_shrink.cu, lora_expand.cu): on Hopper, in bf16.

Their blocks take little of a multiprocessor: a base product leaves little, and beside it is where they run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_server.kernels.cuda_driver import CudaKernel, device_index, load_kernel
from loraplex_server.kernels.lora_tables import LoraTables, ProjectionShape
from loraplex_server.kernels.product_kernels import has_cuda_products

PART_INPUTS = 1024  # whose products are added up before they go to memory
_WARPS = 4  # of a block
_COLUMNS = 128  # of a unit of the second product
_LAUNCH = {"WARPS": _WARPS, "MINB": 4}
PLAN_DEFINES = {"WARPS": _WARPS}
SHRINK_DEFINES = _LAUNCH | {"PART": PART_INPUTS, "CHUNKS": 2}
EXPAND_DEFINES = _LAUNCH | {"COLUMNS": _COLUMNS}
STAGES = {0: (3, 2), 1: (3, 2), 2: (3, 2), 3: (3, 2)}  # of both products, by projection
_PLAN_INTS = 16  # of a tile
_TILE_BYTES = 52  # in shared memory
_MAX_TILES = 2048


def has_cuda_lora(rows: Tensor) -> bool:
    """Whether the kernels run where the rows of activations lie, on their dtype."""
    return rows.dtype == torch.bfloat16 and has_cuda_products(rows.device)


def plan_shapes(projections: Sequence[ProjectionShape], adds: Sequence[bool], device: torch.device) -> Tensor:
    """[projections, 5] int32, what `launch_plan` knows of each projection."""
    rows = []
    for projection, is_added in zip(projections, adds, strict=True):
        starts = (0, *projection.column_ends[:2])
        blocks = [
            -(-(end - start) // _COLUMNS) for start, end in zip(starts, projection.column_ends, strict=True)
        ]
        rows.append([-(-projection.in_features // PART_INPUTS), *blocks, int(is_added)])
    return torch.tensor(rows, dtype=torch.int32, device=device)


def plan_ints(num_layers: int, num_projections: int, num_tiles: int) -> int:
    """Length of a plan."""
    return num_layers * num_projections * num_tiles * _PLAN_INTS


def launch_plan(tables: LoraTables, row_tiles: Tensor, shapes: Tensor, plan: Tensor) -> None:
    """Prepare the launches of a step: of all layers, and of the projections whose `plan_shapes` these are."""
    num_layers = tables.records.shape[1]
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
    shrink_stages, expand_stages = STAGES[projection.index]
    _shrink_kernel(device, shrink_stages).launch(
        grid,
        (x, parts, *weights, x.stride(0), part_stride, in_features, rank_stride),
        overlap=True,
        shared_bytes=shrink_bytes(shrink_stages, num_tiles),
    )
    num_parts = -(-in_features // PART_INPUTS)
    _expand_kernel(device, expand_stages, adds).launch(
        grid,
        (y, parts, *weights, y.stride(0), *projection.column_ends, num_parts, part_stride, rank_stride),
        overlap=True,
        shared_bytes=expand_bytes(expand_stages, num_tiles),
    )


def shrink_bytes(stages: int, num_tiles: int) -> int:
    """Dynamic shared memory of a block of the first product: weights and activations under way, and the row tiles."""
    return _WARPS * stages * SHRINK_DEFINES["CHUNKS"] * 1536 + num_tiles * _TILE_BYTES


def expand_bytes(stages: int, num_tiles: int) -> int:
    """... of the second product: weights under way, and the row tiles."""
    return _WARPS * stages * _COLUMNS * 32 + num_tiles * _TILE_BYTES


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _plan_kernel(device: int) -> CudaKernel:
    with torch.cuda.device(device):
        return load_kernel("lora_plan.cu", "lora_plan", PLAN_DEFINES, 32 * _WARPS)


@functools.cache
def _shrink_kernel(device: int, stages: int) -> CudaKernel:
    defines = SHRINK_DEFINES | {"STAGES": stages}
    with torch.cuda.device(device):
        return load_kernel(
            "lora_shrink.cu", "lora_shrink", defines, 32 * _WARPS, shrink_bytes(stages, _MAX_TILES)
        )


@functools.cache
def _expand_kernel(device: int, stages: int, adds: bool) -> CudaKernel:
    defines = EXPAND_DEFINES | {"STAGES": stages, "ADD": int(adds)}
    with torch.cuda.device(device):
        return load_kernel(
            "lora_expand.cu", "lora_expand", defines, 32 * _WARPS, expand_bytes(stages, _MAX_TILES)
        )
