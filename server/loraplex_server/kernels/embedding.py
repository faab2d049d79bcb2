"""Rows of an embedding table, plain or int8 with a scale per row."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_server.kernels.device_code import cast, wait_for_previous
from loraplex_server.kernels.triton_runtime import (
    Pointer,
    constexpr,
    jit,
    overlaps_launches,
    require,
    tl,
)

_BLOCK = 1024


def embed_reference(token_ids: Tensor, table: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[n, hidden] in `dtype`."""
    rows = table[token_ids].float()
    return (rows if scales is None else rows * scales[token_ids].view(-1, 1)).to(dtype)


@jit
def _embed_kernel(
    ids_ptr: Pointer,
    table_ptr: Pointer,
    scales_ptr: Pointer,
    out_ptr: Pointer,
    HIDDEN: constexpr,
    HAS_SCALES: constexpr,
    BLOCK: constexpr,
    PDL: constexpr,
) -> None:
    """Program (row, block of columns)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    wait_for_previous(PDL)
    token_id = tl.maximum(tl.load(ids_ptr + row), 0).to(tl.int64)
    x = tl.load(table_ptr + token_id * HIDDEN + columns, mask=mask, other=0).to(tl.float32)
    if HAS_SCALES:
        x = x * tl.load(scales_ptr + token_id)
    tl.store(out_ptr + row * HIDDEN + columns, cast(x, out_ptr.dtype.element_ty), mask=mask)


def embed(token_ids: Tensor, table: Tensor, scales: Tensor | None, out: Tensor) -> None:
    """out[i] = table[token_ids[i]], times its scale if there are scales.

    token_ids  [n] int32 or int64, each in the table; negative ones, of tokens that could not be chosen, read row 0
    table      [vocab, hidden] contiguous, of any dtype
    scales     [vocab] or [vocab, 1] fp32, contiguous
    out        [n, hidden] contiguous
    """
    vocab_size, hidden = table.shape
    require(table.is_contiguous() and out.is_contiguous(), "table and out must be contiguous")
    require(out.shape == (token_ids.shape[0], hidden), f"out {tuple(out.shape)} has another shape")
    require(scales is None or scales.numel() == vocab_size, "scales must be one per row of the table")
    pdl = overlaps_launches(out)
    _embed_kernel[(out.shape[0], -(-hidden // _BLOCK))](
        token_ids,
        table,
        scales,
        out,
        HIDDEN=hidden,
        HAS_SCALES=scales is not None,
        BLOCK=_BLOCK,
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
    )
