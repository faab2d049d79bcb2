"""The processors that there are for an engine."""

from __future__ import annotations

import os
import sys


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
