"""What launchers share."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_server.kernels.cpu.runtime import HAS_OPENMP

# Elements below which a second thread costs more than it saves: starting a team takes about a microsecond.
_MIN_SPREAD = 8192


def team_size() -> int:
    """Threads that a kernel may be given: torch's, or 1 where they cannot be borrowed."""
    return torch.get_num_threads() if HAS_OPENMP else 1


def spread(threads: int, num_elements: int) -> int:
    """Threads worth starting for so many elements: all or one."""
    return threads if num_elements >= _MIN_SPREAD else 1


def address_of(tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """Where a kernel finds a tensor, whose format it takes on trust."""
    assert tensor.dtype is dtype, f"{tensor.dtype} where a kernel reads {dtype}"
    assert tensor.is_contiguous(), f"strides {tensor.stride()}"
    return tensor.data_ptr()
