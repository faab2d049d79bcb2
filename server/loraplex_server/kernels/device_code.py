"""Pieces that several kernels share. Nothing here is launched by itself."""

from __future__ import annotations

from loraplex_server.kernels.triton_runtime import (
    IS_INTERPRETED,
    Block,
    constexpr,
    global_constexpr,
    jit,
    tl,
)

INTERPRETED = global_constexpr(IS_INTERPRETED)


@jit
def wait_for_previous(PDL: constexpr) -> None:
    """Let the next launch begin, then wait until everything before this one is written.

    Every program of every kernel that is launched with `launch_pdl` calls this exactly once, or the next kernel could
    read what the one before this has not written. Before it, a kernel may read only what no kernel writes but those of
    a step's inputs and of adapters' records: `GpuDecoder.forward` begins with launches that wait for these.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@jit
def dot(a: Block, b: Block, acc: Block) -> Block:
    """acc + a @ b in fp32. Triton's interpreter multiplies the bits of bf16 operands, so there they are cast."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision="ieee")


@jit
def cast(x: Block, dtype: constexpr) -> Block:
    """fp32 -> dtype, to nearest, ties to even. Triton's interpreter truncates, so there the bits are rounded first."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True).to(tl.bfloat16)
    return x.to(dtype)


@jit
def round_to_int(x: Block) -> Block:
    """To the nearest integer, ties to even, for |x| < 2**22: the addition leaves no bits for a fraction."""
    return (x + 12582912.0) - 12582912.0


@jit
def quantize_row(x: Block) -> tuple[Block, Block]:
    """One row of fp32 -> (integers in [-127, 127] as fp32, scale); a row of zeros stays zero.

    The bits of magnitudes are in their order, and a NaN's are above all: its row gets it for a scale, so that nothing
    makes numbers of it.
    """
    magnitudes = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    top = tl.maximum(tl.max(magnitudes, axis=0), 0x2B8CBCCC).to(tl.float32, bitcast=True)  # at least 1e-12
    return round_to_int(x * (127.0 / top)), top / 127.0
