"""Tensor maps: what the tensor memory accelerator of Hopper is told about a matrix."""

from __future__ import annotations

import ctypes
import functools

from torch import Tensor

from loraplex_server.kernels.cuda_driver import check, driver

BOX_BYTES = 128  # of a box's rows, the span of the swizzle
_UINT8, _UINT16 = 0, 1  # CU_TENSOR_MAP_DATA_TYPE
_SWIZZLE_128B, _PROMOTION_256B = 3, 3
_ALIGNMENT = 64

TensorMap = ctypes.Array[ctypes.c_uint64]
"""The 128 bytes of a CUtensorMap, by value."""


def tensor_map(matrix: Tensor, box_rows: int) -> TensorMap:
    """Boxes of `box_rows` rows × 128 bytes of a matrix [rows, columns] of int8 or bf16, swizzled over 128 bytes.

    Rows are contiguous and, like the address, aligned to 16 bytes; box_rows is at most 256.
    Raises KernelError: the driver refuses it.
    """
    rows, columns = matrix.shape
    row_bytes = matrix.stride(0) * matrix.element_size()
    return _encoded(matrix.data_ptr(), rows, columns, row_bytes, matrix.element_size(), box_rows)


@functools.lru_cache(maxsize=4096)
def _encoded(
    address: int, rows: int, columns: int, row_bytes: int, element_bytes: int, box_rows: int
) -> TensorMap:
    words = ctypes.c_uint64 * 16
    storage = ctypes.create_string_buffer(128 + _ALIGNMENT)
    start = -ctypes.addressof(storage) % _ALIGNMENT
    encoded = words.from_buffer(storage, start)
    check(
        driver().cuTensorMapEncodeTiled(
            ctypes.byref(encoded),
            _UINT8 if element_bytes == 1 else _UINT16,
            2,
            ctypes.c_void_p(address),
            (ctypes.c_uint64 * 2)(columns, rows),
            (ctypes.c_uint64 * 1)(row_bytes),
            (ctypes.c_uint32 * 2)(BOX_BYTES // element_bytes, box_rows),
            (ctypes.c_uint32 * 2)(1, 1),
            0,  # not interleaved
            _SWIZZLE_128B,
            _PROMOTION_256B,
            0,  # zeros outside
        )
    )
    return encoded
