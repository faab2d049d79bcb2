"""From the packed q,k,v product to rotated queries and written pages, with LoRA and head norms on the way."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_server.kernels.device_code import cast, lora_delta, wait_for_previous
from loraplex_server.kernels.layer_ops import HeadNorms
from loraplex_server.kernels.lora_epilogue import LoraEpilogue
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
    shrunk_ptr: Pointer,
    arena_ptr: Pointer,
    records_ptr: Pointer,
    tiles_ptr: Pointer,
    eps: Scalar,
    num_rows: Scalar,  # of the batch, where there are no row tiles
    record_start: Scalar,
    slot_stride: Scalar,
    HEADS: constexpr,
    KV_HEADS: constexpr,
    HALF: constexpr,  # of a head
    HAS_NORMS: constexpr,
    HAS_LORA: constexpr,
    RANK_STRIDE: constexpr,
    BLOCK_M: constexpr,
    BLOCK_R: constexpr,
    PDL: constexpr,
) -> None:
    """Program (head of q, k or v, row tile)."""
    head = tl.program_id(0)
    offsets = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HALF)
    is_query = head < HEADS
    is_value = head >= HEADS + KV_HEADS
    if HAS_LORA:
        tile_ptr = tiles_ptr + tl.program_id(1) * 4
        row_start = tl.load(tile_ptr)
        tile_rows = tl.load(tile_ptr + 1)
        slot = tl.load(tile_ptr + 2)
        is_adapted = (tile_rows > 0) & (slot >= 0)
        rows = (row_start + offsets).to(tl.int64)
        row_mask = offsets < tile_rows
        record_ptr = records_ptr + record_start + slot.to(tl.int64) * slot_stride
        module = (head >= HEADS).to(tl.int32) + is_value.to(tl.int32)
        first_head = tl.where(is_query, 0, tl.where(is_value, HEADS + KV_HEADS, HEADS))
        width = tl.multiple_of(tl.where(is_query, HEADS, KV_HEADS) * (2 * HALF), 8)
        columns = (head - first_head) * (2 * HALF) + dims
        everywhere = dims < HALF
        low = lora_delta(
            arena_ptr,
            shrunk_ptr,
            record_ptr,
            module,
            is_adapted,
            rows,
            row_mask,
            columns,
            everywhere,
            width,
            RANK_STRIDE,
            BLOCK_M,
            HALF,
            BLOCK_R,
            PDL,
        )
        high = lora_delta(
            arena_ptr,
            shrunk_ptr,
            record_ptr,
            module,
            is_adapted,
            rows,
            row_mask,
            columns + HALF,
            everywhere,
            width,
            RANK_STRIDE,
            BLOCK_M,
            HALF,
            BLOCK_R,
            False,
        )
    else:
        wait_for_previous(PDL)
        rows = (tl.program_id(1) * BLOCK_M + offsets).to(tl.int64)
        row_mask = rows < num_rows
        low = tl.zeros((BLOCK_M, HALF), dtype=tl.float32)
        high = low
    mask = row_mask[:, None]
    row_ptrs = (
        qkv_ptr + rows[:, None] * ((HEADS + 2 * KV_HEADS) * 2 * HALF) + head * (2 * HALF) + dims[None, :]
    )
    low += tl.load(row_ptrs, mask=mask, other=0.0).to(tl.float32)
    high += tl.load(row_ptrs + HALF, mask=mask, other=0.0).to(tl.float32)
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
    lora: LoraEpilogue | None = None,
) -> None:
    """Add LoRA, normalize and rotate heads; queries go back into `qkv`, keys and values into their pages.

    qkv        [n, (num_heads + 2 · num_kv_heads) · head_dim] contiguous; keys and values in it stay unrotated
    cos, sin   [max_positions, head_dim / 2], contiguous, fp32
    positions  [n] int32 or int64
    kv_slots   [n] int32 or int64: block · block_size + offset; -1 writes nothing, as for padding rows
    cache      [num_blocks, block_size, 2 · num_kv_heads · head_dim] contiguous
    lora       of the q,k,v projection; its row tiles must cover all rows
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
    if lora is not None:
        lora.check(qkv, (num_heads * 2 * half, num_kv_heads * 2 * half, num_kv_heads * 2 * half))
    block_m = 16 if lora is None else lora.tile_rows
    num_tiles = -(-num_rows // block_m) if lora is None else lora.row_tiles.shape[0]
    pdl = overlaps_launches(qkv)
    _rope_and_write_kernel[(num_all_heads, num_tiles)](
        qkv,
        cos,
        sin,
        positions,
        kv_slots,
        cache,
        None if norms is None else norms.query,
        None if norms is None else norms.key,
        None if lora is None else lora.shrunk,
        None if lora is None else lora.tables.arena,
        None if lora is None else lora.tables.records,
        None if lora is None else lora.row_tiles,
        0.0 if norms is None else norms.eps,
        num_rows,
        0 if lora is None else lora.record_start,
        0 if lora is None else lora.slot_stride,
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        HALF=half,
        HAS_NORMS=norms is not None,
        HAS_LORA=lora is not None,
        RANK_STRIDE=1 if lora is None else lora.shrunk.shape[1],
        BLOCK_M=block_m,
        BLOCK_R=16 if lora is None else lora.block_r,
        PDL=pdl,
        num_warps=4,
        num_stages=1,  # the loop requests its next rows of B itself
        launch_pdl=pdl,
    )
