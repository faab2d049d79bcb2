"""What a linear layer of the resident base is, and the unquantized one.

A linear is a callable `x [n, in] -> y [n, out]` that owns its weight. It never sees an adapter: LoRA adds to `y` later,
so the quantized weight is read once for all adapters in the batch.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


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
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def dequantized(self) -> Tensor:
        return self._weight
