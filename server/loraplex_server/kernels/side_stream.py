"""A second stream for work that need not stand in line; in a captured graph, a second branch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loraplex_server.kernels.cuda_driver import overlap_captured_kernels

OVERLAP_FORK, OVERLAP_JOIN = False, True

class SideStream:
    """Fork, work, join. On a CPU the work is simply done."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def fork(self) -> Iterator[None]:
        """What is launched inside runs after all that the main stream holds so far, beside what follows."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        if OVERLAP_FORK:
            overlap_captured_kernels(torch.cuda.current_stream(), self._stream)
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What the main stream is given from now on waits for the side stream."""
        if self._stream is not None:
            main = torch.cuda.current_stream()
            main.wait_stream(self._stream)
            if OVERLAP_JOIN:
                overlap_captured_kernels(main, main)
