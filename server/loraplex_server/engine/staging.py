"""Small inputs of a step: written on the host as named arrays, brought to the device in one go."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loraplex_server.kernels.pinned_read import GRANULE, read_pinned

_ALIGNMENT = 4 * GRANULE  # bytes
_DEPTH = 3  # host buffers in turn: one being filled, one being read, one to spare
_NUMPY_TYPES: dict[torch.dtype, type[np.generic]] = {
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float32: np.float32,
}


@dataclass(frozen=True, slots=True)
class _Field:
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class StagingLayout:
    """Where the named arrays of one kind of step lie in a buffer."""

    def __init__(self, fields: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self._fields: dict[str, _Field] = {}
        offset = 0
        for name, (shape, dtype) in fields.items():
            field = self._fields[name] = _Field(offset, shape, dtype)
            offset += -(-field.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = offset

    def host_views(self, buffer: NDArray[np.uint8]) -> dict[str, NDArray[np.generic]]:
        """The arrays, for writing."""
        return {
            name: buffer[field.offset : field.offset + field.nbytes]
            .view(_NUMPY_TYPES[field.dtype])
            .reshape(field.shape)
            for name, field in self._fields.items()
        }

    def device_views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The same arrays, for kernels."""
        return {
            name: buffer[field.offset : field.offset + field.nbytes].view(field.dtype).view(field.shape)
            for name, field in self._fields.items()
        }


class Staging:
    """One device buffer and host buffers in turn. A step's inputs arrive behind the kernels of the step before it."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self.device_buffer = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._host = [
            torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=self._is_cuda) for _ in range(_DEPTH)
        ]
        self._read: list[torch.cuda.Event | None] = [None] * _DEPTH  # behind the last reading of each
        self._current = 0

    def begin(self) -> NDArray[np.uint8]:
        """The host buffer to write next; waits until it was read last."""
        self._current = (self._current + 1) % _DEPTH
        read = self._read[self._current]
        if read is not None:
            read.synchronize()
        return self._host[self._current].numpy()

    def upload(self, num_bytes: int) -> None:
        """Bring what was written to the device, in the order of the current stream; `num_bytes` of a layout."""
        assert num_bytes % _ALIGNMENT == 0, "a kernel of its own would be compiled"
        target, source = self.device_buffer[:num_bytes], self._host[self._current][:num_bytes]
        if not self._is_cuda:
            target.copy_(source)
            return
        read_pinned(target.view(torch.int32), source.view(torch.int32))
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._read[self._current] = event
