"""Linear layers on the GPU: products into buffers that exist already, from rows that may be quantized already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loraplex_server.kernels.int8_matmul import Int8Weight, int8_matmul
from loraplex_server.kernels.nf4_matmul import nf4_matmul
from loraplex_server.kernels.nf4_weight import Nf4Weight
from loraplex_server.kernels.quantize import QuantizedRows


@dataclass(frozen=True, slots=True)
class LinearInput:
    """Rows in the formats that somebody has asked for."""

    dense: Tensor | None  # [n, in] in the compute dtype
    quantized: QuantizedRows | None


class GpuLinear(Protocol):
    """y = x @ W.T + b with a weight in any format."""

    in_features: int
    out_features: int
    takes_int8: bool  # reads `quantized` instead of `dense`

    @property
    def weight_bytes(self) -> int:
        """Bytes of weight, scales and bias in memory."""
        ...

    def __call__(self, x: LinearInput, out: Tensor) -> None:
        """Write [n, out_features] in the compute dtype into `out`, contiguous."""
        ...


class DenseGpuLinear:
    """An unquantized weight, through cuBLAS."""

    takes_int8 = False

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._weight = weight
        self._weight_t = weight.t()
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: LinearInput, out: Tensor) -> None:
        assert x.dense is not None
        if self._bias is None:
            torch.mm(x.dense, self._weight_t, out=out)
        else:
            torch.addmm(self._bias, x.dense, self._weight_t, out=out)


class Nf4GpuLinear:
    """Weights in 4 bits, equal to bitsandbytes' bit for bit."""

    takes_int8 = False

    def __init__(self, weight: Nf4Weight, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self._weight = weight
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: LinearInput, out: Tensor) -> None:
        assert x.dense is not None
        nf4_matmul(x.dense, self._weight, out, self._bias)


class Int8GpuLinear:
    """W8A8: one scale per output and per row, int32 accumulation."""

    takes_int8 = True

    def __init__(self, weight: Int8Weight, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.values.shape
        self._weight = weight
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        bias_bytes = 0 if self._bias is None else int(self._bias.nbytes)
        return int(self._weight.values.nbytes + self._weight.scales.nbytes) + bias_bytes

    def __call__(self, x: LinearInput, out: Tensor) -> None:
        assert x.quantized is not None
        int8_matmul(x.quantized, self._weight, out, self._bias)
