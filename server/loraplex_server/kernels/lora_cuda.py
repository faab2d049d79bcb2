"""LoRA's two products for rows that decode, in CUDA C++ (lora_shrink.cu, lora_expand.cu): on Hopper, in bf16.

Their blocks take little of a multiprocessor: a base product leaves little, and beside it is where they run.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from loraplex_server.kernels.cuda_driver import CudaKernel, device_index, load_kernel
from loraplex_server.kernels.lora_tables import LoraTables, ProjectionShape
from loraplex_server.kernels.product_kernels import has_cuda_products

PART_INPUTS = 1024  # whose products are added up before they go to memory
_WARPS = 4  # of a block
_LAUNCH = {"WARPS": _WARPS, "MINB": 4}
SHRINK_DEFINES = _LAUNCH | {"PART": PART_INPUTS, "CHUNKS": 2, "STAGES": 3}
EXPAND_DEFINES = _LAUNCH | {"COLUMNS": 128, "STAGES": 2}
_TILE_BYTES = 52  # in shared memory
_MAX_TILES = 2048


def has_cuda_lora(rows: Tensor) -> bool:
    """Whether the kernels run where the rows of activations lie, on their dtype."""
    return rows.dtype == torch.bfloat16 and has_cuda_products(rows.device)


def launch_lora(
    x: Tensor,
    y: Tensor,
    parts: Tensor,
    rank_stride: int,
    tables: LoraTables,
    row_tiles: Tensor,
    layer: int,
    projection: ProjectionShape,
    adds: bool,
) -> None:
    """Both products; operands as `lora_apply` has checked them.

    parts  [in / PART_INPUTS, n, rank_stride] fp32, scratch
    """
    num_rows, in_features = x.shape
    num_tiles, part_stride = row_tiles.shape[0], num_rows * rank_stride
    device = device_index(x.device)
    grid = (_multiprocessors(device), 1)
    weights = (
        *(tables.arena, tables.records, row_tiles, num_tiles),
        *(tables.record_start(layer, projection), tables.slot_stride),
    )
    _shrink_kernel(device).launch(
        grid,
        (x, parts, *weights, x.stride(0), part_stride, in_features, rank_stride),
        overlap=True,
        shared_bytes=shrink_bytes(num_tiles),
    )
    num_parts = -(-in_features // PART_INPUTS)
    _expand_kernel(device, adds).launch(
        grid,
        (
            *(y, parts, *weights, y.stride(0), *projection.column_ends),
            *(num_parts, part_stride, rank_stride),
        ),
        overlap=True,
        shared_bytes=expand_bytes(num_tiles),
    )


def shrink_bytes(num_tiles: int) -> int:
    """Dynamic shared memory of a block of the first product: weights and activations under way, and the row tiles."""
    return _WARPS * SHRINK_DEFINES["STAGES"] * SHRINK_DEFINES["CHUNKS"] * 1536 + num_tiles * _TILE_BYTES


def expand_bytes(num_tiles: int) -> int:
    """... of the second product: weights under way, and the row tiles."""
    return _WARPS * EXPAND_DEFINES["STAGES"] * EXPAND_DEFINES["COLUMNS"] * 32 + num_tiles * _TILE_BYTES


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _shrink_kernel(device: int) -> CudaKernel:
    with torch.cuda.device(device):
        return load_kernel(
            "lora_shrink.cu", "lora_shrink", SHRINK_DEFINES, 32 * _WARPS, shrink_bytes(_MAX_TILES)
        )


@functools.cache
def _expand_kernel(device: int, adds: bool) -> CudaKernel:
    defines = EXPAND_DEFINES | {"ADD": int(adds)}
    with torch.cuda.device(device):
        return load_kernel("lora_expand.cu", "lora_expand", defines, 32 * _WARPS, expand_bytes(_MAX_TILES))
