"""Triton where it is installed, and what the kernels' launchers share.

Without Triton every module of this package still imports: the references in plain torch are all there, and a
launcher that is called says what is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:  # an install for CPUs
    triton = None
    tl = None

__all__ = [
    "HAS_TRITON",
    "IS_INTERPRETED",
    "Block",
    "Pointer",
    "Scalar",
    "constexpr",
    "global_constexpr",
    "jit",
    "next_power_of_2",
    "overlaps_launches",
    "require",
    "tl",
]

HAS_TRITON = triton is not None
IS_INTERPRETED = HAS_TRITON and bool(triton.knobs.runtime.interpret)

if TYPE_CHECKING or not HAS_TRITON:
    Pointer: TypeAlias = Any  # of a kernel's parameter: a tensor outside, a pointer inside
    Scalar: TypeAlias = Any  # of a kernel's parameter: an int or float of the launch
    Block: TypeAlias = Any  # a value inside a kernel
    constexpr: TypeAlias = Any  # Triton recognizes compile-time parameters by this name in their annotation
else:  # Triton's compiler looks annotations up and takes nothing but its own classes
    Pointer = Scalar = Block = tl.tensor
    constexpr = tl.constexpr


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or a stand-in that refuses to be launched."""
    return triton.jit(function) if HAS_TRITON else _Unavailable(function.__name__)


class _Unavailable:
    """A kernel on an install without Triton."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        raise RuntimeError(f"the kernel '{self._name}' needs Triton: pip install triton")


def global_constexpr(value: bool) -> Any:
    """A constant that kernels may read from their module."""
    return tl.constexpr(value) if HAS_TRITON else value


def overlaps_launches(tensor: Tensor) -> bool:
    """Whether the tensor's device starts a kernel while the one before drains (programmatic dependent launch)."""
    return tensor.is_cuda and _compute_capability(tensor.device) >= (9, 0)


@functools.cache
def _compute_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n, for n >= 1."""
    return 1 << (n - 1).bit_length()


def require(condition: bool, message: str) -> None:
    """Raises ValueError: a launcher was given tensors that its kernel does not read as meant."""
    if not condition:
        raise ValueError(message)
