"""Peak memory of this process, in the terms that plans are made in."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

_SELF = Path("/proc/self")


def reset_peak(device: Literal["cpu", "cuda"]) -> None:
    """Forget the peak so far, where the system lets one."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            (_SELF / "clear_refs").write_text("5")


def peak_bytes(device: Literal["cpu", "cuda"], context_bytes: int) -> int:
    """Peak since the process began, or since `reset_peak`.

    On a CPU the resident set. On CUDA what torch had allocated and `context_bytes`, the plan's allowance for the
    driver: what the allocator caches beyond that could be given back.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() + context_bytes
    with suppress(OSError):
        # Not getrusage: its figure survives exec, so that a small process inherits the peak of a large parent.
        for line in (_SELF / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
