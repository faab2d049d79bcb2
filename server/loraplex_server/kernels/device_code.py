"""Pieces that several kernels share. Nothing here is launched by itself."""

from __future__ import annotations

from loraplex_server.kernels.triton_runtime import (
    IS_INTERPRETED,
    Block,
    Pointer,
    Scalar,
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
    read what the one before this has not written. Before it, a kernel may read only what no kernel writes.
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
    """One row of fp32 -> (integers in [-127, 127] as fp32, scale); a row of zeros stays zero."""
    top = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-12)
    return round_to_int(x * (127.0 / top)), top / 127.0


@jit
def lora_delta(
    arena_ptr: Pointer,  # the arena
    shrunk_ptr: Pointer,  # [rows, RANK_STRIDE], A x
    record_ptr: Pointer,  # the slot's record of this layer and projection, see kernels.lora_tables
    module: Scalar,  # 0, 1 or 2: which module of the projection
    is_adapted: Scalar,  # whether the rows carry an adapter at all
    rows: Block,  # [BLOCK_M] rows of the batch
    row_mask: Block,
    columns: Block,  # [BLOCK_N] columns within the module
    column_mask: Block,
    width: Scalar,  # of the module
    RANK_STRIDE: constexpr,
    BLOCK_M: constexpr,
    BLOCK_N: constexpr,
    BLOCK_R: constexpr,
    PDL: constexpr,
) -> Block:
    """[BLOCK_M, BLOCK_N] fp32: B (A x) of one module, zeros where it has rank 0. Waits for the previous kernel.

    The first rows of B are requested before the wait, and later ones before the product that precedes theirs.
    """
    rank = tl.load(record_ptr + 5 + module, mask=is_adapted, other=0)
    rank_start = tl.load(record_ptr + 5, mask=is_adapted & (module > 0), other=0)
    rank_start += tl.load(record_ptr + 6, mask=is_adapted & (module > 1), other=0)
    b_offset = tl.load(record_ptr + 2 + module, mask=is_adapted, other=0).to(tl.int64) * 8
    ranks = tl.arange(0, BLOCK_R)
    b_ptrs = arena_ptr + b_offset + ranks[:, None] * width + columns[None, :]
    b = tl.load(b_ptrs, mask=(ranks[:, None] < rank) & column_mask[None, :], other=0.0)
    wait_for_previous(PDL)
    delta = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    shrunk_ptrs = shrunk_ptr + rows[:, None] * RANK_STRIDE + rank_start + ranks[None, :]
    for first in range(0, rank, BLOCK_R):
        mask = row_mask[:, None] & (ranks[None, :] < rank - first)
        shrunk = tl.load(shrunk_ptrs + first, mask=mask, other=0.0)
        following = first + BLOCK_R
        b_next = tl.load(
            b_ptrs + following * width,
            mask=(ranks[:, None] < rank - following) & column_mask[None, :],
            other=0.0,
        )
        delta = dot(shrunk, b, delta)
        b = b_next
    return delta
