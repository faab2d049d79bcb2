"""LoRA's first product for rows that decode, in CUDA C++: on Hopper, in bf16; see cuda/lora_shrink.cu."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from loraplex_server.kernels.cuda_driver import CudaKernel, load_kernel
from loraplex_server.kernels.product_kernels import has_cuda_products

_WARPS, _PART = 4, 128
_BLOCK_INPUTS = _WARPS * _PART
_TILE_RANKS = 16
_MAX_GROUPS = 4  # blocks that share the ranks of one row tile
_BLOCKS_PER_MULTIPROCESSOR = 5  # at least: the compiler then takes few enough registers


def has_cuda_shrink(x: Tensor) -> bool:
    """Whether the kernel runs where x lies, on its dtype."""
    return x.dtype == torch.bfloat16 and has_cuda_products(x.device)


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
    groups = min(_MAX_GROUPS, -(-rank_stride // _TILE_RANKS))
    shrink_kernel(x.device).launch(
        (-(-in_features // _BLOCK_INPUTS), groups * row_tiles.shape[0]),
        (
            *(x, shrunk, parts, counters, arena, records, row_tiles),
            *(record_start, slot_stride, x.stride(0), num_rows * rank_stride, in_features, rank_stride, groups),
        ),
        overlap=True,
    )


def shrink_kernel(device: torch.device) -> CudaKernel:
    """Compiled or taken from the cache on disk at its first use.

    Raises KernelError.
    """
    return _kernel(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _kernel(device_index: int) -> CudaKernel:
    with torch.cuda.device(device_index):
        return load_kernel(
            "lora_shrink.cu", "lora_shrink", {"MINB": _BLOCKS_PER_MULTIPROCESSOR}, threads=32 * _WARPS
        )
