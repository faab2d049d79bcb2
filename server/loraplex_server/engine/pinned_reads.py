"""Small arrays on their way to a GPU, whose kernels read them from pinned memory: they do not queue behind copies."""

from __future__ import annotations

from collections import defaultdict, deque

import torch
from torch import Tensor

from loraplex_server.kernels.pinned_read import read_pinned
from loraplex_server.kernels.triton_runtime import next_power_of_2

_LEAST_WORDS = 1024  # of a buffer; larger ones are powers of two, so that they serve again
_GRANULE = 16  # words; Triton compiles another kernel for sizes that are no multiple of it


class PinnedReads:
    """Pinned buffers, each in use until the device has read it. Never waits: there is a new one if need be."""

    def __init__(self) -> None:
        self._in_use: defaultdict[int, deque[tuple[Tensor, torch.cuda.Event]]] = defaultdict(deque)  # by size

    def write(self, words: Tensor, target: Tensor) -> None:
        """target = words in the order of the current stream.

        words   int32 [n] on the host, free to change afterwards
        target  int32 [n], contiguous, on the device; n is a multiple of 16
        """
        size = max(_LEAST_WORDS, next_power_of_2(words.numel()))
        waiting = self._in_use[size]
        if waiting and waiting[0][1].query():  # type: ignore[no-untyped-call]
            buffer, event = waiting.popleft()
        else:
            buffer = torch.empty(size, dtype=torch.int32, pin_memory=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        used = buffer[: words.numel()]
        used.copy_(words)
        read_pinned(target, used)
        event.record()
        waiting.append((buffer, event))

    def bring(self, words: Tensor, device: torch.device) -> Tensor:
        """A place on the device that holds `words`, int32 [n] on the host, in the order of the current stream."""
        if device.type != "cuda":
            return words
        missing = -words.numel() % _GRANULE
        padded = torch.nn.functional.pad(words, (0, missing))
        target = torch.empty(padded.numel(), dtype=torch.int32, device=device)
        self.write(padded, target)
        return target[: words.numel()]
