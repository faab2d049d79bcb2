"""Peak memory of a training: of the device where there is one, else of the process."""

from __future__ import annotations

import psutil
import torch


class PeakMemory:
    """On CUDA what torch allocated at most, exactly; on a CPU the largest resident set of the looks taken."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rss_peak = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def look(self) -> None:
        """Take in the present size."""
        if self._device.type != "cuda":
            self._rss_peak = max(self._rss_peak, psutil.Process().memory_info().rss)

    @property
    def peak_bytes(self) -> int:
        """The peak so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return self._rss_peak
