"""Small host buffers to the device without the copy engine, where they would wait behind copies of adapters."""

from __future__ import annotations

from torch import Tensor

from loraplex_server.kernels.device_code import wait_for_previous
from loraplex_server.kernels.triton_runtime import (
    Pointer,
    Scalar,
    constexpr,
    jit,
    overlaps_launches,
    require,
    tl,
)

GRANULE = 16
"""Words: Triton compiles another kernel for sizes that are no multiple of it."""
_BLOCK = 1024  # words of one program


@jit
def _read_kernel(
    target_ptr: Pointer,
    source_ptr: Pointer,
    num_words: Scalar,
    BLOCK: constexpr,
    PDL: constexpr,
) -> None:
    """Program (block of words)."""
    words = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = words < num_words
    # No kernel writes the host's memory: it is on its way while the kernel before this one ends.
    values = tl.load(source_ptr + words, mask=mask, volatile=True)
    wait_for_previous(PDL)
    tl.store(target_ptr + words, values, mask=mask)


def read_pinned(target: Tensor, source: Tensor) -> None:
    """target = source, in the order of the current stream.

    source  pinned, int32, contiguous; stays as it is until the kernel is over
    target  of the same size on the device, int32, contiguous
    """
    require(target.numel() == source.numel(), f"{source.numel()} words do not fit {target.numel()}")
    require(target.is_contiguous() and source.is_contiguous(), "target and source must be contiguous")
    pdl = overlaps_launches(target)
    _read_kernel[(-(-target.numel() // _BLOCK),)](
        target, source, target.numel(), BLOCK=_BLOCK, PDL=pdl, num_warps=4, launch_pdl=pdl
    )
