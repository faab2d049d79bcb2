"""What a decoder layer does between its products, and plain torch that does it, which is the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from loraplex_server.kernels.lora import LoraSegment, SegmentedLora
from loraplex_server.kernels.paged_attention import AttentionShape, paged_attention

if TYPE_CHECKING:
    from loraplex_server.model.batch import DecodeRows, LoraBatch, PrefillChunk


@dataclass(frozen=True, slots=True)
class Rotation:
    """Of the rows of one batch. Both halves of a head turn by the same angle."""

    cos: Tensor  # [n, head_dim] what multiplies a head
    sin: Tensor  # [n, head_dim] what multiplies its swapped halves: the first half is negated


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms of each query and key head by itself (Qwen3)."""

    query: Tensor  # [head_dim]
    key: Tensor  # [head_dim]
    eps: float


class LayerOps(Protocol):
    """Tensors are contiguous; n is the number of rows of a batch."""

    def rms_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """hidden += delta in place, then the norm of each row [n, features], freshly allocated."""
        ...

    def rotate_and_store(
        self,
        qkv: Tensor,
        rotation: Rotation,
        norms: HeadNorms | None,
        kv_slots: Tensor,
        cache: Tensor,
        shape: AttentionShape,
    ) -> None:
        """Queries and keys of qkv [n, (heads + 2 · kv_heads) · head_dim] are normed and turned in place; keys and
        values go to the cache [num_blocks, block_size, 2 · kv_heads · head_dim] at `kv_slots` [n]."""
        ...

    def attention(
        self,
        qkv: Tensor,
        cache: Tensor,
        decode: DecodeRows,
        prefills: list[PrefillChunk],
        shape: AttentionShape,
    ) -> Tensor:
        """Of the queries in `qkv` over the cache, [n, heads · head_dim]; see `paged_attention`."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) · up: [n, 2 · features] -> [n, features]."""
        ...

    def quantize_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Symmetric int8 per row: x [n, k] -> (int8 [n, k], scale [n, 1] fp32), x ≈ int8 · scale."""
        ...

    def scale_rows(self, y: Tensor, row_scale: Tensor, bias: Tensor | None) -> None:
        """y = y · row_scale + bias in place; y [n, m] fp32, row_scale [n, 1], bias [m]."""
        ...

    def argmax_rows(self, x: Tensor) -> Tensor:
        """Where each row of x [n, k] is largest, [n] int64; of equals the first."""
        ...

    def lora_batch(self, segments: list[LoraSegment], num_decode_rows: int) -> LoraBatch:
        """The adapters of a batch; no segment has rows on both sides of `num_decode_rows`."""
        ...


class TorchOps:
    """Any device, any float dtype. Implements `LayerOps`."""

    def rms_norm(self, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        if delta is not None:
            hidden.add_(delta)
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, eps)

    def rotate_and_store(
        self,
        qkv: Tensor,
        rotation: Rotation,
        norms: HeadNorms | None,
        kv_slots: Tensor,
        cache: Tensor,
        shape: AttentionShape,
    ) -> None:
        num_queries, dim = shape.num_heads * shape.head_dim, shape.head_dim
        rotated = qkv[:, : num_queries + shape.num_kv_heads * dim].view(qkv.shape[0], -1, dim)
        if norms is not None:
            queries, keys = rotated[:, : shape.num_heads], rotated[:, shape.num_heads :]
            queries.copy_(F.rms_norm(queries, (dim,), norms.query, norms.eps))
            keys.copy_(F.rms_norm(keys, (dim,), norms.key, norms.eps))
        half = dim // 2
        swapped = torch.cat((rotated[..., half:], rotated[..., :half]), dim=-1)
        rotated.mul_(rotation.cos.unsqueeze(1)).add_(swapped.mul_(rotation.sin.unsqueeze(1)))
        cache.view(-1, cache.shape[-1]).index_copy_(0, kv_slots, qkv[:, num_queries:].to(cache.dtype))

    def attention(
        self,
        qkv: Tensor,
        cache: Tensor,
        decode: DecodeRows,
        prefills: list[PrefillChunk],
        shape: AttentionShape,
    ) -> Tensor:
        queries = qkv[:, : shape.num_heads * shape.head_dim].view(-1, shape.num_heads, shape.head_dim)
        return paged_attention(queries, cache, decode, prefills, shape)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def quantize_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = x.abs().amax(-1, keepdim=True).float().clamp_(min=1e-12).div_(127.0)
        quantized = (x / scale).round_()  # |x / scale| <= 127 up to rounding, so no clamp is needed
        return quantized.to(torch.int8), scale

    def scale_rows(self, y: Tensor, row_scale: Tensor, bias: Tensor | None) -> None:
        y.mul_(row_scale)
        if bias is not None:
            y.add_(bias)

    def argmax_rows(self, x: Tensor) -> Tensor:
        return x.argmax(dim=-1)

    def lora_batch(self, segments: list[LoraSegment], num_decode_rows: int) -> LoraBatch:
        return SegmentedLora(segments)
