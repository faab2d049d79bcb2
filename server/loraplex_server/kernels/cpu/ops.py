"""Launchers of the kernels for CPUs: fp32 activations, keys and values in bf16 or fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loraplex_server.kernels.cpu import attention, rows
from loraplex_server.kernels.cpu.launch import address_of, spread, team_size
from loraplex_server.kernels.cpu.lora import lora
from loraplex_server.kernels.cpu.lora_batch import CpuLoraBatch
from loraplex_server.kernels.cpu.runtime import prepare
from loraplex_server.kernels.layer_ops import HeadNorms, Rotation
from loraplex_server.kernels.lora import LoraSegment
from loraplex_server.kernels.paged_attention import AttentionShape, prefill_attention

if TYPE_CHECKING:
    from loraplex_server.model.batch import DecodeRows, LoraBatch, PrefillChunk


class CpuOps:
    """Implements `loraplex_server.kernels.layer_ops.LayerOps`. A row's result never depends on the other rows."""

    def __init__(self) -> None:
        prepare(
            rows.rms_norm,
            rows.rotate_and_store,
            rows.silu_mul,
            rows.quantize_rows,
            rows.scale_rows,
            rows.argmax_rows,
            attention.decode_attention,
            lora,
        )
        self._threads = team_size()

    def rms_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(hidden)
        n, width = hidden.shape
        added = 0 if delta is None else address_of(delta)
        rows.rms_norm(
            address_of(hidden),
            added,
            address_of(weight),
            out.data_ptr(),
            n,
            width,
            eps,
            spread(self._threads, n * width),
        )
        return out

    def rotate_and_store(
        self,
        qkv: Tensor,
        rotation: Rotation,
        norms: HeadNorms | None,
        kv_slots: Tensor,
        cache: Tensor,
        shape: AttentionShape,
    ) -> None:
        q_norm, k_norm, eps = (
            (0, 0, 0.0) if norms is None else (address_of(norms.query), address_of(norms.key), norms.eps)
        )
        rows.rotate_and_store(
            address_of(qkv),
            address_of(rotation.cos),
            address_of(rotation.sin),
            address_of(kv_slots, torch.int64),
            address_of(cache, cache.dtype),
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            q_norm,
            k_norm,
            eps,
            _is_bf16(cache),
            qkv.shape[0],
            spread(self._threads, qkv.numel()),
        )

    def attention(
        self,
        qkv: Tensor,
        cache: Tensor,
        decode: DecodeRows,
        prefills: list[PrefillChunk],
        shape: AttentionShape,
    ) -> Tensor:
        width = shape.num_heads * shape.head_dim
        out = torch.empty(qkv.shape[0], width)
        if decode.count:
            attention.decode_attention(
                address_of(qkv),
                qkv.shape[1],
                out.data_ptr(),
                address_of(cache, cache.dtype),
                address_of(decode.block_tables, torch.int64),
                decode.block_tables.shape[1],
                address_of(decode.context_lengths, torch.int64),
                shape.num_heads,
                shape.num_kv_heads,
                shape.head_dim,
                cache.shape[1],
                shape.sliding_window or 0,
                _is_bf16(cache),
                decode.count,
                spread(self._threads, decode.count * decode.max_context * width),
            )
        if prefills:
            queries = qkv[:, :width].view(-1, shape.num_heads, shape.head_dim)
            prefill_attention(queries, cache, prefills, shape, out)
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        n, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(n, width)
        rows.silu_mul(address_of(gate_up), out.data_ptr(), n, width, spread(self._threads, n * width))
        return out

    def quantize_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, width = x.shape
        values, scales = torch.empty(n, width, dtype=torch.int8), torch.empty(n, 1)
        rows.quantize_rows(
            address_of(x),
            values.data_ptr(),
            scales.data_ptr(),
            n,
            width,
            width,
            spread(self._threads, n * width),
        )
        return values, scales

    def scale_rows(self, y: Tensor, row_scale: Tensor, bias: Tensor | None) -> None:
        n, width = y.shape
        added = 0 if bias is None else address_of(bias)
        rows.scale_rows(
            address_of(y), address_of(row_scale), added, n, width, spread(self._threads, n * width)
        )

    def argmax_rows(self, x: Tensor) -> Tensor:
        n, width = x.shape
        out = torch.empty(n, dtype=torch.int64)
        rows.argmax_rows(address_of(x), out.data_ptr(), n, width, spread(self._threads, x.numel()))
        return out

    def lora_batch(self, segments: list[LoraSegment], num_decode_rows: int) -> LoraBatch:
        return CpuLoraBatch(segments, num_decode_rows, self._threads)


def _is_bf16(cache: Tensor) -> bool:
    assert cache.dtype in (torch.bfloat16, torch.float32), cache.dtype
    return cache.dtype is torch.bfloat16
