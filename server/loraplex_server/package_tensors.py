"""The weights of a checked package, one matrix at a time."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from loraplex_adapters.errors import AdapterUnavailableError
from loraplex_adapters.package import AdapterPackage

_STORED_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}

Array = npt.NDArray[Any]


class PackageTensors:
    """Tensors of a package's weights file, read when asked for."""

    def __init__(self, file: BinaryIO, package: AdapterPackage) -> None:
        """`file` stands at its beginning."""
        self._file = file
        self._tensors = package.tensors
        self._data_offset = 8 + int.from_bytes(file.read(8), "little")

    def read(self, key: str) -> Array:
        """In the dtype of the file; bf16 as its bits."""
        info = self._tensors[key]
        array = np.empty(info.shape, _STORED_TYPES[info.dtype])
        self._file.seek(self._data_offset + info.begin)
        if self._file.readinto(array.data.cast("B")) != info.num_bytes:  # type: ignore[attr-defined]
            raise AdapterUnavailableError("the adapter's stored package was cut off; register it again")
        return array


def as_float32(array: Array) -> npt.NDArray[np.float32]:
    """Of an array as it was read."""
    if array.dtype == np.uint16:  # bits of bf16
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.asarray(array, np.float32)
