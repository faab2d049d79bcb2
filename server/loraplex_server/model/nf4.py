"""NF4 linear layer in bitsandbytes' format: block size 64, double quantization.

QLoRA, Dettmers et al., 2023. Every module's weight is quantized by bitsandbytes by itself, so it is the very weight
that an adapter trained over bitsandbytes has seen, and it dequantizes bit-equal to it.
"""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_SIZE = 64  # weights per scale
_NESTED_BLOCK_SIZE = 256  # scales per scale of scales
_PACKED_ROWS = 32  # outputs that bitsandbytes interleaves for its CPU product


class Nf4Linear:
    """Weights in 4 bits, side by side; implements `loraplex_server.model.linear.Linear`."""

    def __init__(self, weights: list[Tensor], bias: Tensor | None, compute_dtype: torch.dtype) -> None:
        """Quantize modules that share an input, each [out_i, in] of any float dtype, on the device they are on.

        bias [sum of out_i] in the compute dtype.
        """
        self.in_features = weights[0].shape[1]
        self.out_features = sum(weight.shape[0] for weight in weights)
        parts = [_quantize(weight.to(compute_dtype)) for weight in weights]
        is_packed = compute_dtype == torch.bfloat16 and _is_packed(
            [weight.shape[0] for weight in weights], self.in_features, weights[0].device.type
        )
        self._storage: _Storage = _PackedStorage(parts) if is_packed else _PlainStorage(parts)
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes, scales, their own scales, and the bias."""
        return self._storage.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        y = self._storage.product(x)
        return y if self._bias is None else y.add_(self._bias)

    def dequantized(self) -> Tensor:
        """[out, in] in the compute dtype, bit-equal to bitsandbytes module by module."""
        return self._storage.dequantized()


def nf4_bytes(out_features: list[int], in_features: int, device_type: str) -> int:
    """What `Nf4Linear` of such modules holds in memory, bias excluded."""
    total = 0
    for rows in out_features:
        num_scales = -(-rows * in_features // _BLOCK_SIZE)
        # One byte a scale, and for each block of scales an fp32 one; one fp32 mean.
        total += -(-rows * in_features // 2) + num_scales + 4 * -(-num_scales // _NESTED_BLOCK_SIZE) + 4
    if _is_packed(out_features, in_features, device_type):
        total += sum(out_features) * in_features // _BLOCK_SIZE * torch.bfloat16.itemsize
    return total


class _Storage(Protocol):
    """Quantized modules in one of two layouts."""

    @property
    def nbytes(self) -> int: ...

    def product(self, x: Tensor) -> Tensor:
        """x [n, in] -> [n, out], freshly allocated."""
        ...

    def dequantized(self) -> Tensor: ...


class _PlainStorage:
    """bitsandbytes' own layout; the product dequantizes the weight first."""

    def __init__(self, parts: list[tuple[Tensor, Any]]) -> None:
        self._parts = parts

    @property
    def nbytes(self) -> int:
        return sum(codes.nbytes + _state_bytes(state) for codes, state in self._parts)

    def product(self, x: Tensor) -> Tensor:
        # Module by module: joining their outputs moves less than joining their weights.
        outputs = [F.linear(x, _dequantize(codes, state).to(x.dtype)) for codes, state in self._parts]
        return _concatenate(outputs, dim=1)

    def dequantized(self) -> Tensor:
        return _concatenate([_dequantize(codes, state) for codes, state in self._parts])


class _PackedStorage:
    """Layout of bitsandbytes' CPU product, which reads the 4-bit codes and never builds the weight.

    Measured on two Zen 4 cores over the projections of SmolLM2-135M, against dequantizing first: 5 times as fast at one
    row, 2.5 times at 8, 1.4 times at 32, and never behind. It rounds a block's scale to bf16, an error of the size of
    the weight's own rounding to bf16. The quantized scales stay beside it, so that dequantizing is still exact.
    """

    def __init__(self, parts: list[tuple[Tensor, Any]]) -> None:
        self._states = [state for _, state in parts]
        packed = [_pack(codes, state) for codes, state in parts]
        self._codes = _concatenate([codes for codes, _ in packed])
        self._scales = torch.cat([state.absmax for _, state in packed], dim=1)
        self._shape = [self._codes.shape[0], self._codes.shape[1] * 2]
        self._table = parts[0][1].code

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes + sum(_state_bytes(state) for state in self._states)

    def product(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.bitsandbytes.gemv_4bit.default(
            x.contiguous(), self._codes, self._shape, self._scales, self._table, _BLOCK_SIZE
        )
        return y

    def dequantized(self) -> Tensor:
        weights, row = [], 0
        for state in self._states:
            num_rows = state.shape[0]
            codes = _unpack(self._codes[row : row + num_rows])
            weights.append(_dequantize(codes, state))
            row += num_rows
        return _concatenate(weights)


def _quantize(weight: Tensor) -> tuple[Tensor, Any]:
    """Codes [ceil(out · in / 2), 1] uint8 and bitsandbytes' state."""
    codes, state = _bitsandbytes().quantize_4bit(
        weight.contiguous(), blocksize=_BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
    )
    return codes, state


def _dequantize(codes: Tensor, state: Any) -> Tensor:
    weight: Tensor = _bitsandbytes().dequantize_4bit(codes, state)
    return weight


def _state_bytes(state: Any) -> int:
    """Quantized scales, the scales of those, and their mean."""
    return int(state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes)


def _concatenate(tensors: list[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _is_packed(out_features: list[int], in_features: int, device_type: str) -> bool:
    """Whether such modules, in bf16, are held in the layout of the CPU product."""
    fits = in_features % _BLOCK_SIZE == 0 and all(rows % _PACKED_ROWS == 0 for rows in out_features)
    return device_type == "cpu" and fits and _packed_product_works()


@functools.cache
def _packed_product_works() -> bool:
    """Whether this CPU and this bitsandbytes have the product, and its layout is the one that `_unpack` knows.

    The layout is bitsandbytes' own affair and may change with its version: what is not understood is not used.
    """
    functional = _bitsandbytes()
    if not (hasattr(functional, "_convert_weight_packed_for_cpu") and functional.has_avx512bf16()):
        return False
    weight = torch.linspace(-1, 1, 2 * _PACKED_ROWS * 2 * _BLOCK_SIZE).sin_().view(2 * _PACKED_ROWS, -1)
    codes, state = _quantize(weight.to(torch.bfloat16))
    storage = _PackedStorage([(codes, state)])
    exact = _dequantize(codes, state)
    x = exact[:2].contiguous()
    product, expected = storage.product(x), F.linear(x.float(), exact.float())
    is_close = (product.float() - expected).abs().max() <= 0.02 * expected.abs().max()
    return bool(is_close) and torch.equal(storage.dequantized(), exact)


def _pack(codes: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Codes [out, in / 2] in the product's layout; the new state's absmax is [in / 64, out] bf16."""
    packed, packed_state = _bitsandbytes()._convert_weight_packed_for_cpu(codes, copy.copy(state))
    return packed, packed_state


def _unpack(packed: Tensor) -> Tensor:
    """Inverse of `_pack`: [out, in / 2] in the product's layout -> codes [out · in / 2, 1].

    Blocks of 32 outputs are laid out input pair by input pair; of each run of 64 codes the first 32 are the low halves
    of 32 bytes and the rest the high halves.
    """
    rows, pairs = packed.shape
    runs = packed.reshape(-1, _PACKED_ROWS)
    nibbles = torch.cat((runs & 0xF, runs >> 4), dim=1).view(rows // _PACKED_ROWS, pairs, _PACKED_ROWS, 2)
    ordered = nibbles.transpose(1, 2).reshape(-1, 2)  # the two codes of a byte, first one high
    return (ordered[:, :1] << 4) | ordered[:, 1:]


@functools.cache
def _bitsandbytes() -> Any:
    """bitsandbytes.functional, imported when first needed."""
    # Where bf16 instructions exist it looks for one more package of kernels and warns of its absence; its own serve.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from bitsandbytes import functional

    return functional
