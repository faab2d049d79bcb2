"""A second stream for work that need not stand in line; in a captured graph, a second branch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loraplex_server.kernels.cuda_driver import has_capture_edges, overlap_captured_kernels


class SideStream:
    """Fork, work, join. On a CPU the work is simply done."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._overlaps = False  # whether kernels start while those before them end
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._overlaps = torch.cuda.get_device_capability(device) >= (9, 0) and has_capture_edges()

    def fork(self) -> None:
        """Work on the side runs after what the main stream holds so far, beside what it is given from now on.

        In a graph, its first kernel may start before that has ended, and is given room after the kernel that the main
        stream is given next, if that one is launched before the work.
        """
        if self._stream is None:
            return
        main = torch.cuda.current_stream()
        self._stream.wait_stream(main)
        if self._overlaps:
            overlap_captured_kernels(main, self._stream)

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is launched inside goes to the side stream."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """What the main stream is given from now on waits for the side stream."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
