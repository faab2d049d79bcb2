"""LoRA's two products for rows that decode, in CUDA C++ (lora_shrink.cu, lora_expand.cu): on Hopper, in bf16.

Both take few registers and hardly any shared memory: a base product leaves little of either, and beside it is where
they run.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from loraplex_server.kernels.cuda_driver import CudaKernel, device_index, load_kernel
from loraplex_server.kernels.product_kernels import has_cuda_products

_WARPS = 4
_SHRINK_INPUTS = _WARPS * 128  # of one block
_SHRINK_RANKS = 16  # that a block takes at once
_SHRINK_GROUPS = 4  # blocks that share the ranks of one row tile
_MORE_GROUPS, _FEW_TILES = 8, 4  # up to so many row tiles, which would not fill the device
SHRINK_DEFINES = {"DEPTH": 1, "MINB": 5}
EXPAND_DEFINES = {"GROUPS": 2, "DEPTH": 2, "MINB": 5}
_EXPAND_COLUMNS = _WARPS * 32 * EXPAND_DEFINES["GROUPS"]  # of one block


def has_cuda_lora(rows: Tensor) -> bool:
    """Whether the kernels run where the rows of activations lie, on their dtype."""
    return rows.dtype == torch.bfloat16 and has_cuda_products(rows.device)


def launch_shrink(
    x: Tensor,
    shrunk: Tensor,
    parts: Tensor,
    counters: Tensor,
    arena: Tensor,
    records: Tensor,
    row_tiles: Tensor,
    record_start: int,
    slot_stride: int,
) -> None:
    """Operands as `lora_shrink` has checked them; it leaves at most as many parts as the Triton kernel."""
    num_rows, in_features = x.shape
    rank_stride = shrunk.shape[1]
    groups = _MORE_GROUPS if row_tiles.shape[0] <= _FEW_TILES else _SHRINK_GROUPS
    groups = min(groups, -(-rank_stride // _SHRINK_RANKS))
    _shrink_kernel(device_index(x.device)).launch(
        (-(-in_features // _SHRINK_INPUTS), groups * row_tiles.shape[0]),
        (
            *(x, shrunk, parts, counters, arena, records, row_tiles),
            *(
                record_start,
                slot_stride,
                x.stride(0),
                num_rows * rank_stride,
                in_features,
                rank_stride,
                groups,
            ),
        ),
        overlap=True,
    )


def launch_expand(
    y: Tensor,
    shrunk: Tensor,
    arena: Tensor,
    records: Tensor,
    row_tiles: Tensor,
    record_start: int,
    slot_stride: int,
    column_ends: tuple[int, int, int],
    adds: bool,
) -> None:
    """Operands as `lora_expand` has checked them."""
    end_0, end_1, end_2 = column_ends
    widths = (end_0, end_1 - end_0, end_2 - end_1)
    _expand_kernel(device_index(y.device), adds).launch(
        (sum(-(-width // _EXPAND_COLUMNS) for width in widths), row_tiles.shape[0]),
        (
            *(y, shrunk, arena, records, row_tiles, record_start, slot_stride),
            *(y.stride(0), *column_ends, shrunk.shape[1]),
        ),
        overlap=True,
    )


@functools.cache
def _shrink_kernel(device: int) -> CudaKernel:
    with torch.cuda.device(device):
        return load_kernel("lora_shrink.cu", "lora_shrink", SHRINK_DEFINES, 32 * _WARPS)


@functools.cache
def _expand_kernel(device: int, adds: bool) -> CudaKernel:
    with torch.cuda.device(device):
        return load_kernel("lora_expand.cu", "lora_expand", EXPAND_DEFINES | {"ADD": int(adds)}, 32 * _WARPS)
