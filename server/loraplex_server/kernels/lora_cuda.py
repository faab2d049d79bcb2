"""LoRA for rows that decode, in CUDA C++ (lora.cu): on Hopper, in bf16. One launch for each projection.

Its blocks take little of a multiprocessor: a base product leaves little, and beside it is where they run.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from loraplex_server.kernels.cuda_driver import CudaKernel, device_index, load_kernel
from loraplex_server.kernels.lora_scratch import LoraScratch
from loraplex_server.kernels.lora_tables import LoraTables, ProjectionShape
from loraplex_server.kernels.product_kernels import has_cuda_products

PART_INPUTS = 1024  # whose products are added up before they go to memory
DEFINES = {
    "WARPS": 4,
    "PART": PART_INPUTS,
    "A_CHUNKS": 2,
    "A_STAGES": 3,
    "COLUMNS": 128,
    "B_STAGES": 2,
    "MINB": 4,
}
_TILE_BYTES = 56  # in shared memory
_MAX_TILES = 2048


def has_cuda_lora(rows: Tensor) -> bool:
    """Whether the kernels run where the rows of activations lie, on their dtype."""
    return rows.dtype == torch.bfloat16 and has_cuda_products(rows.device)


def launch_lora(
    x: Tensor,
    y: Tensor,
    scratch: LoraScratch,
    rank_stride: int,
    tables: LoraTables,
    row_tiles: Tensor,
    layer: int,
    projection: ProjectionShape,
    adds: bool,
) -> None:
    """Operands as `lora_apply` has checked them."""
    num_rows, in_features = x.shape
    num_tiles, device = row_tiles.shape[0], device_index(x.device)
    _kernel(device, adds).launch(
        (_multiprocessors(device), 1),
        (
            *(x, y, scratch.parts, scratch.meeting, tables.arena, tables.records, row_tiles, num_tiles),
            *(tables.record_start(layer, projection), tables.slot_stride, x.stride(0), y.stride(0)),
            *(num_rows * rank_stride, in_features, rank_stride, *projection.column_ends),
        ),
        overlap=True,
        shared_bytes=_shared_bytes(num_tiles),
    )


def _shared_bytes(num_tiles: int) -> int:
    """Weights under way, and the row tiles."""
    a_bytes = DEFINES["A_STAGES"] * DEFINES["A_CHUNKS"] * 1536
    b_bytes = DEFINES["B_STAGES"] * DEFINES["COLUMNS"] * 32
    return DEFINES["WARPS"] * max(a_bytes, b_bytes) + num_tiles * _TILE_BYTES


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _kernel(device: int, adds: bool) -> CudaKernel:
    defines = DEFINES | {"ADD": int(adds)}
    with torch.cuda.device(device):
        return load_kernel("lora.cu", "lora", defines, 32 * DEFINES["WARPS"], _shared_bytes(_MAX_TILES))
