"""From the packed q,k,v product to rotated queries and written pages, with LoRA and head norms on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_server.kernels.device_code import cast, wait_for_previous
from loraplex_server.kernels.layer_ops import HeadNorms
from loraplex_server.kernels.triton_runtime import (
    Block,
    Pointer,
    Scalar,
    constexpr,
    jit,
    overlaps_launches,
    require,
    tl,
)

_BLOCK_M = 16


def rope_and_write_reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    kv_slots: Tensor,
    cache: Tensor,
    num_heads: int,
    num_kv_heads: int,
    norms: HeadNorms | None,
) -> None:
    """As `rope_and_write`, without LoRA."""
    head_dim = 2 * cos.shape[1]
    heads = qkv.float().view(qkv.shape[0], -1, head_dim)
    rotated = heads[:, : num_heads + num_kv_heads]
    if norms is not None:
        mean_square = rotated.square().mean(-1, keepdim=True)
        weights = torch.cat((norms.query.expand(num_heads, -1), norms.key.expand(num_kv_heads, -1))).float()
        rotated = rotated * torch.rsqrt(mean_square + norms.eps) * weights
    angles_cos, angles_sin = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    low, high = rotated.chunk(2, dim=-1)
    rotated = torch.cat((low * angles_cos - high * angles_sin, high * angles_cos + low * angles_sin), dim=-1)
    qkv.view(heads.shape)[:, :num_heads] = rotated[:, :num_heads].to(qkv.dtype)
    written = kv_slots >= 0
    entries = torch.cat((rotated[:, num_heads:], heads[:, num_heads + num_kv_heads :]), dim=1)
    cache.view(-1, cache.shape[2])[kv_slots[written]] = entries[written].flatten(1).to(cache.dtype)


@jit
def _normed(
    low: Block, high: Block, weight_ptr: Pointer, dims: Block, HALF: constexpr, eps: Scalar
) -> tuple[Block, Block]:
    """Both halves of heads [rows, HALF] after the RMS norm of the whole head."""
    squares = tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)
    factor = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
    low *= factor * tl.load(weight_ptr + dims).to(tl.float32)[None, :]
    high *= factor * tl.load(weight_ptr + HALF + dims).to(tl.float32)[None, :]
    return low, high


@jit
def _rope_and_write_kernel(
    qkv_ptr: Pointer,
    cos_ptr: Pointer,
    sin_ptr: Pointer,
    positions_ptr: Pointer,
    slots_ptr: Pointer,
    cache_ptr: Pointer,
    query_norm_ptr: Pointer,
    key_norm_ptr: Pointer,
    delta_ptr: Pointer,  # read with HAS_DELTA
    eps: Scalar,
    num_rows: Scalar,
    HEADS: constexpr,
    KV_HEADS: constexpr,
    HALF: constexpr,  # of a head
    HAS_NORMS: constexpr,
    HAS_DELTA: constexpr,
    BLOCK_M: constexpr,
    PDL: constexpr,
) -> None:
    """Program (head of q, k or v, block of rows)."""
    head = tl.program_id(0)
    dims = tl.arange(0, HALF)
    is_query = head < HEADS
    is_value = head >= HEADS + KV_HEADS
    rows = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    row_mask = rows < num_rows
    mask = row_mask[:, None]
    places = rows[:, None] * ((HEADS + 2 * KV_HEADS) * 2 * HALF) + head * (2 * HALF) + dims[None, :]
    row_ptrs = qkv_ptr + places
    wait_for_previous(PDL)
    low = tl.load(row_ptrs, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(row_ptrs + HALF, mask=mask, other=0.0).to(tl.float32)
    if HAS_DELTA:
        low += tl.load(delta_ptr + places, mask=mask, other=0.0).to(tl.float32)
        high += tl.load(delta_ptr + places + HALF, mask=mask, other=0.0).to(tl.float32)
    if not is_value:
        if HAS_NORMS:
            if is_query:
                low, high = _normed(low, high, query_norm_ptr, dims, HALF, eps)
            else:
                low, high = _normed(low, high, key_norm_ptr, dims, HALF, eps)
        positions = tl.load(positions_ptr + rows, mask=row_mask, other=0).to(tl.int64)
        cos = tl.load(cos_ptr + positions[:, None] * HALF + dims[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
        sin = tl.load(sin_ptr + positions[:, None] * HALF + dims[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
        turned = low * cos - high * sin
        high = high * cos + low * sin
        low = turned
    if is_query:
        tl.store(row_ptrs, cast(low, qkv_ptr.dtype.element_ty), mask=mask)
        tl.store(row_ptrs + HALF, cast(high, qkv_ptr.dtype.element_ty), mask=mask)
    else:
        slots = tl.load(slots_ptr + rows, mask=row_mask, other=-1).to(tl.int64)
        entry_ptrs = (
            cache_ptr
            + slots[:, None] * (2 * KV_HEADS * 2 * HALF)
            + (head - HEADS) * (2 * HALF)
            + dims[None, :]
        )
        is_written = (slots >= 0)[:, None]
        tl.store(entry_ptrs, cast(low, cache_ptr.dtype.element_ty), mask=is_written)
        tl.store(entry_ptrs + HALF, cast(high, cache_ptr.dtype.element_ty), mask=is_written)


def rope_and_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    kv_slots: Tensor,
    cache: Tensor,
    num_heads: int,
    num_kv_heads: int,
    norms: HeadNorms | None = None,
    delta: Tensor | None = None,
) -> None:
    """Add LoRA, normalize and rotate heads; queries go back into `qkv`, keys and values into their pages.

    qkv        [n, (num_heads + 2 · num_kv_heads) · head_dim] contiguous; keys and values in it stay unrotated
    cos, sin   [max_positions, head_dim / 2], contiguous, fp32
    positions  [n] int32 or int64
    kv_slots   [n] int32 or int64: block · block_size + offset; -1 writes nothing, as for padding rows
    cache      [num_blocks, block_size, 2 · num_kv_heads · head_dim] contiguous
    delta      of qkv's shape and dtype, contiguous: its LoRA, added first
    """
    num_rows, features = qkv.shape
    half = cos.shape[1]
    num_all_heads = num_heads + 2 * num_kv_heads
    require(half in (8, 16, 32, 64, 128), f"head_dim {2 * half} is not a power of two in 16..256")
    require(features == num_all_heads * 2 * half and qkv.is_contiguous(), "qkv has another shape")
    require(
        cache.shape[2] == 2 * num_kv_heads * 2 * half and cache.is_contiguous(), "cache has another layout"
    )
    require(cos.shape == sin.shape and cos.is_contiguous() and sin.is_contiguous(), "cos, sin: other shape")
    require(
        positions.shape[0] >= num_rows and kv_slots.shape[0] >= num_rows, "positions or slots are too few"
    )
    require(
        delta is None or (delta.shape == qkv.shape and delta.dtype == qkv.dtype and delta.is_contiguous()),
        f"delta must be contiguous {tuple(qkv.shape)} in the dtype of qkv",
    )
    pdl = overlaps_launches(qkv)
    _rope_and_write_kernel[(num_all_heads, -(-num_rows // _BLOCK_M))](
        qkv,
        cos,
        sin,
        positions,
        kv_slots,
        cache,
        None if norms is None else norms.query,
        None if norms is None else norms.key,
        delta,
        0.0 if norms is None else norms.eps,
        num_rows,
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        HALF=half,
        HAS_NORMS=norms is not None,
        HAS_DELTA=delta is not None,
        BLOCK_M=_BLOCK_M,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
    )
