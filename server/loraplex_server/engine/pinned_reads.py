"""Small arrays on their way to a GPU, whose kernels read them from pinned memory: they do not queue behind copies."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

import torch
from torch import Tensor

from loraplex_server.kernels.pinned_read import GRANULE, read_pinned
from loraplex_server.kernels.triton_runtime import next_power_of_2

_LEAST_WORDS = 1024  # of a buffer; larger ones are powers of two, so that they serve again
_RESERVED = 4  # of each size: for two that a step brings, and two of the step before


Bring = Callable[[Tensor, torch.device], Tensor]
"""int32 [n] on the host -> the same on a device, in the order of its current stream."""


class PinnedReads:
    """Pinned buffers, each in use until the device has read it.

    Never waits for a reader: where all are in use there is a new one. To pin memory takes the driver a while, so what a
    running engine needs is reserved before.
    """

    def __init__(self) -> None:
        # By size, the one read first in front.
        self._buffers: defaultdict[int, deque[_Buffer]] = defaultdict(deque)

    def reserve(self, num_words: int) -> None:
        """Have buffers for so many words, and for fewer."""
        size = _LEAST_WORDS
        while size < 2 * max(num_words, _LEAST_WORDS):
            self._buffers[size] += [_Buffer(size) for _ in range(_RESERVED - len(self._buffers[size]))]
            size *= 2

    def write(self, words: Tensor, target: Tensor) -> None:
        """target = words in the order of the current stream.

        words   int32 [n] on the host, free to change afterwards
        target  int32 [n], contiguous, on the device; n is a multiple of `GRANULE`
        """
        size = max(_LEAST_WORDS, next_power_of_2(words.numel()))
        buffers = self._buffers[size]
        buffer = buffers.popleft() if buffers and not buffers[0].is_in_use else _Buffer(size)
        buffer.read_into(target, words)
        buffers.append(buffer)

    def bring(self, words: Tensor, device: torch.device) -> Tensor:
        """A place on the device that holds `words`, int32 [n] on the host, in the order of the current stream."""
        if device.type != "cuda":
            return words
        padded = torch.nn.functional.pad(words, (0, -words.numel() % GRANULE))
        target = torch.empty(padded.numel(), dtype=torch.int32, device=device)
        self.write(padded, target)
        return target[: words.numel()]


class _Buffer:
    """Pinned memory that the device reads."""

    def __init__(self, size: int) -> None:
        self._words = torch.empty(size, dtype=torch.int32, pin_memory=True)
        self._read = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @property
    def is_in_use(self) -> bool:
        """Whether the device may still read what it was given last."""
        return not self._read.query()  # type: ignore[no-untyped-call]

    def read_into(self, target: Tensor, words: Tensor) -> None:
        used = self._words[: words.numel()]
        used.copy_(words)
        read_pinned(target, used)
        self._read.record()
