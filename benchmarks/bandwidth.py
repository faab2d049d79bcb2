"""How fast a GPU copies: what shares of a memory bus are measured against."""

from __future__ import annotations

import statistics

import torch


def copy_bandwidth() -> float:
    """Bytes per second of a device-to-device copy of 1 GiB, read and written both counted; median of 12.

    Copies are launched one by one: in a graph they become another kind of copy, slower by a third on an H200.
    """
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_(0, 255)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(12):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stop = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        target.copy_(source)
        stop.record()
        stop.synchronize()
        seconds.append(float(start.elapsed_time(stop)) / 1e3)
    return 2 * int(source.nbytes) / statistics.median(seconds)
