"""NF4 linear layer in bitsandbytes' format: block size 64, double quantization.

QLoRA, Dettmers et al., 2023. The weight is quantized by bitsandbytes and dequantizes bit-equal to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_SIZE = 64


class Nf4Linear:
    """A weight in 4 bits; implements `loraplex_server.model.linear.Linear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, compute_dtype: torch.dtype) -> None:
        """Quantize `weight` [out, in], any float dtype, on the device it is on."""
        from bitsandbytes.functional import quantize_4bit

        self.out_features, self.in_features = weight.shape
        self._packed, self._state = quantize_4bit(
            weight.to(compute_dtype).contiguous(),
            blocksize=_BLOCK_SIZE,
            compress_statistics=True,
            quant_type="nf4",
        )
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes, block scales, their own scales, and the bias."""
        nested = self._state.state2
        tensors = [self._packed, self._state.absmax, nested.absmax, self._bias]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantized().to(x.dtype), self._bias)

    def dequantized(self) -> Tensor:
        """[out, in] in the dtype the weight was given in."""
        from bitsandbytes.functional import dequantize_4bit

        weight: Tensor = dequantize_4bit(self._packed, self._state)
        return weight
