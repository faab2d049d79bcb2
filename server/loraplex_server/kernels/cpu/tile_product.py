"""An int8 weight in blocks for AMX tiles or VNNI, and its product, from fp32 to fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from loraplex_server.kernels.cpu.int8_product import int8_product, pack_weight, padded_features, unpack_rows
from loraplex_server.kernels.cpu.launch import address_of, spread, team_size
from loraplex_server.kernels.cpu.rows import quantize_rows
from loraplex_server.kernels.cpu.runtime import prepare
from loraplex_server.kernels.cpu.tiles import TILE_BYTES
from loraplex_server.kernels.cpu.vnni_product import flip_sign, vnni_product


class TileProduct:
    """y = x · Wᵀ + bias with rows of x quantized to int8 on the fly; exact between the two roundings.

    A row's result never depends on the other rows. The CPU must have tiles, see `tiles.has_tiles`.
    """

    _kernel = staticmethod(int8_product)

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        """weight [out, in] int8, scale [out] fp32: W = weight · scale."""
        prepare(quantize_rows, self._kernel)
        self._out_features, self._in_features = weight.shape
        self._stride = padded_features(self._in_features)
        self._packed = pack_weight(self._stored(weight))
        self._scale = scale
        self._threads = team_size()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [n, in] fp32, bias [out] fp32 -> [n, out] fp32, freshly allocated."""
        n = x.shape[0]
        values, row_scales = torch.empty(n, self._stride, dtype=torch.int8), torch.empty(n)
        y = torch.empty(n, self._out_features)
        quantize_rows(
            address_of(x),
            values.data_ptr(),
            row_scales.data_ptr(),
            n,
            self._in_features,
            self._stride,
            spread(self._threads, x.numel()),
        )
        self._kernel(
            values.data_ptr(),
            self._stride,
            self._packed.data_ptr(),
            self._stride // TILE_BYTES,
            address_of(self._scale),
            row_scales.data_ptr(),
            0 if bias is None else address_of(bias),
            y.data_ptr(),
            n,
            self._out_features,
            spread(self._threads, self._packed.numel()),
        )
        return y

    def weight(self) -> Tensor:
        """[out, in] int8."""
        return self.weight_rows(torch.arange(self._out_features))

    def weight_rows(self, index: Tensor) -> Tensor:
        """Rows of the weight, [len(index), in] int8."""
        return self._stored(unpack_rows(self._packed, index, self._in_features))

    @staticmethod
    def _stored(weight: Tensor) -> Tensor:
        """The weight as the kernel reads it; the same again gives the weight back."""
        return weight


class VnniProduct(TileProduct):
    """The same numbers, bit for bit, on CPUs that have VNNI and no tiles, see `vnni.has_vnni`."""

    _kernel = staticmethod(vnni_product)

    @staticmethod
    def _stored(weight: Tensor) -> Tensor:
        return flip_sign(weight)
