"""Linear layers of the resident base: dense, and W8A8 through an int8 matrix product.

A linear is a callable `x [n, in] -> y [n, out]` that owns its weight. It never sees an adapter: LoRA adds to `y` later,
so the quantized weight is read once for all adapters in the batch.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_INT8_MAX = 127.0
# Rows below which the CUDA int8 product refuses to run; padded up to it.
_CUDA_INT8_MIN_ROWS = 17


class Linear(Protocol):
    """y = x @ W.T + b with a weight in any format."""

    in_features: int
    out_features: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight, scales and bias in memory."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, in_features] in the compute dtype -> [n, out_features] in the same dtype, freshly allocated."""
        ...

    def dequantized(self) -> Tensor:
        """The weight as the products see it, [out_features, in_features]; for tests and inspection."""
        ...


class DenseLinear:
    """An unquantized weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._weight = weight
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return _nbytes(self._weight) + _nbytes(self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def dequantized(self) -> Tensor:
        return self._weight


class Int8Linear:
    """W8A8: int8 weight with one scale per output, activations quantized per row on the fly, int32 accumulation.

    No outlier branch and no synchronisation with the host. Symmetric on both sides, so that the product needs no
    zero-point correction.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Quantize `weight` [out, in] of any float dtype; `bias` [out] stays as it is."""
        self.out_features, self.in_features = weight.shape
        self._weight, self._scale = quantize_rows(weight)  # [out, in] int8, [out, 1] fp32
        self._scale_row = self._scale.view(1, -1)
        self._weight_t = self._weight.t()
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return _nbytes(self._weight) + _nbytes(self._scale) + _nbytes(self._bias)

    def __call__(self, x: Tensor) -> Tensor:
        quantized, row_scale = quantize_rows(x)
        y = int8_matmul(quantized, self._weight_t) * self._scale_row
        y.mul_(row_scale)
        if self._bias is not None:
            y.add_(self._bias)
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def rows(self, index: Tensor) -> Tensor:
        """Dequantized rows of the weight, [len(index), in] fp32: an embedding lookup for a tied table."""
        return self._weight[index].float().mul_(self._scale[index])

    def dequantized(self) -> Tensor:
        return self._weight.float() * self._scale


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: x [n, k] -> (int8 [n, k], scale [n, 1] fp32), x ≈ int8 * scale; zero rows stay zero."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_(min=1e-12).div_(_INT8_MAX)
    quantized = (x / scale).round_()  # |x / scale| <= 127 up to rounding, so no clamp is needed
    return quantized.to(torch.int8), scale


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [n, k] int8 @ b [k, m] int8 -> [n, m] int32."""
    if a.is_cuda and a.shape[0] < _CUDA_INT8_MIN_ROWS:
        padded = F.pad(a, (0, 0, 0, _CUDA_INT8_MIN_ROWS - a.shape[0]))
        return torch._int_mm(padded, b)[: a.shape[0]]
    return torch._int_mm(a, b)


def _nbytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
