"""W8A8 linear layer: int8 weights with one scale per output, activations quantized per row on the fly.

No outlier branch and no synchronisation with the host. Symmetric on both sides, so that the product needs no
zero-point correction, and int32 accumulation makes it exact.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from loraplex_server.kernels.fastest_ops import layer_ops
from loraplex_server.kernels.layer_ops import TorchOps

log = logging.getLogger(__name__)


class Int8Linear:
    """Implements `loraplex_server.model.linear.Linear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, is_table: bool = False) -> None:
        """Quantize `weight` [out, in] of any float dtype; `bias` [out] stays as it is.

        is_table  `rows` will be asked for, so the layout must give single rows back.
        """
        self.out_features, self.in_features = weight.shape
        quantized, scale = quantize_rows(weight)
        self._scale = scale.view(-1)
        self._product = _product_for(quantized, self._scale, is_table=is_table)
        self._bias = bias

    @property
    def weight_bytes(self) -> int:
        bias_bytes = 0 if self._bias is None else self._bias.nbytes
        return self.out_features * self.in_features + self._scale.nbytes + bias_bytes

    def __call__(self, x: Tensor) -> Tensor:
        y = self._product(x, self._bias)
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def rows(self, index: Tensor) -> Tensor:
        """Dequantized rows of the weight, [len(index), in] fp32: an embedding lookup for a tied table."""
        return self._product.weight_rows(index).float().mul_(self._scale[index].unsqueeze(1))

    def dequantized(self) -> Tensor:
        return self._product.weight().float() * self._scale.unsqueeze(1)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: x [n, k] -> (int8 [n, k], scale [n, 1] fp32), x ≈ int8 * scale; zero rows stay zero."""
    return TorchOps().quantize_rows(x)


class _Product(Protocol):
    """An int8 weight and its product, in one of several layouts."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [n, in] float, bias [out] -> [n, out] fp32, freshly allocated; rows of x are quantized on the fly."""
        ...

    def weight(self) -> Tensor:
        """[out, in] int8."""
        ...

    def weight_rows(self, index: Tensor) -> Tensor:
        """[len(index), in] int8."""
        ...


class _IntegerProduct:
    """A product of integers between the two scalings. Subclasses hold the weight."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        """weight [out, in] int8, scale [out] fp32."""
        self._scale = scale
        self._ops = layer_ops(weight.device, torch.float32)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        ops = self._ops if x.dtype == torch.float32 else TorchOps()
        values, row_scale = ops.quantize_rows(x)
        y = self.multiply(values)
        ops.scale_rows(y, row_scale, bias)
        return y

    def multiply(self, a: Tensor) -> Tensor:
        """a [n, in] int8 -> scale · (W a), [n, out] fp32, freshly allocated."""
        raise NotImplementedError

    def weight(self) -> Tensor:
        raise NotImplementedError

    def weight_rows(self, index: Tensor) -> Tensor:
        return self.weight()[index]


class _RowMajorProduct(_IntegerProduct):
    """The weight as it is, through torch._int_mm."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__(weight, scale)
        self._weight = weight
        self._weight_t = weight.t()

    def multiply(self, a: Tensor) -> Tensor:
        return torch._int_mm(a, self._weight_t) * self._scale

    def weight(self) -> Tensor:
        return self._weight


class _PackedProduct(_IntegerProduct):
    """oneDNN's blocked layout, packed once; a CPU would otherwise rearrange the weight in every product.

    Measured on two Sapphire Rapids cores over the projections of SmolLM2-135M, against torch._int_mm: 1.6 times as
    fast at 8 rows, 2 times at 256; the output's scale and the conversion from int32 come free.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__(weight, scale)
        self._packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self._zero_points = torch.zeros(weight.shape[0], dtype=torch.int32)

    def multiply(self, a: Tensor) -> Tensor:
        y: Tensor = torch.ops.onednn.qlinear_pointwise.default(
            a,
            1.0,
            0,
            self._packed,
            self._scale,
            self._zero_points,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return y

    def weight(self) -> Tensor:
        dense: Tensor = self._packed.to_dense()  # [in, out]
        return dense.t()


class _FloatProduct(_IntegerProduct):
    """For CPUs without fast int8: the same integers through fp32, widened in every product.

    At most 1024 products of 127 · 128 stay below 2²⁴, where fp32 holds every integer; such parts are added in int32.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__(weight, scale)
        self._weight = weight

    def multiply(self, a: Tensor) -> Tensor:
        inputs, weights = (torch.split(matrix, _EXACT_INPUTS, dim=1) for matrix in (a, self._weight))
        sums = [F.linear(x.float(), w.float()) for x, w in zip(inputs, weights, strict=True)]
        whole = sums[0] if len(sums) == 1 else functools.reduce(Tensor.add_, (part.int() for part in sums))
        return whole * self._scale

    def weight(self) -> Tensor:
        return self._weight


_EXACT_INPUTS = 1024


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A product that is fast on this CPU, if it turns out to be exact."""

    name: str  # for people
    product: Callable[[Tensor, Tensor], _Product]
    gives_rows: bool = True  # single rows of the weight, as a table must


def _product_for(weight: Tensor, scale: Tensor, *, is_table: bool) -> _Product:
    for candidate in _candidates():
        if (candidate.gives_rows or not is_table) and _is_exact(candidate.product):
            return candidate.product(weight, scale)
    return _FloatProduct(weight, scale)


def fast_int8_product() -> str | None:
    """What multiplies int8 on this CPU at the speed of its int8 units, in words; None: it goes through fp32."""
    return next((candidate.name for candidate in _candidates() if _is_exact(candidate.product)), None)


@functools.cache
def _candidates() -> tuple[_Candidate, ...]:
    """What the CPU's instructions make fast, the fastest first.

    oneDNN's linear layer takes signed activations in AMX alone. Elsewhere it falls back to its reference code: 2.4 s
    for 128 rows of 1536×576 on one core of an EPYC with VNNI, where torch._int_mm takes 0.5 ms.
    """
    cpu = torch.cpu.get_capabilities()
    has_amx, has_vnni = bool(cpu.get("amx_int8")), bool(cpu.get("avx512_vnni"))
    found = _kernel_candidates()
    if has_amx:
        found.append(_Candidate("oneDNN's AMX product", _PackedProduct, gives_rows=False))
    if has_amx or has_vnni:
        found.append(_Candidate("torch's int8 product", _RowMajorProduct))
    return tuple(found)


def _kernel_candidates() -> list[_Candidate]:
    """Our own products, where Numba is installed."""
    if importlib.util.find_spec("numba") is None:
        return []
    from loraplex_server.kernels.cpu.tile_product import TileProduct, VnniProduct
    from loraplex_server.kernels.cpu.tiles import has_tiles
    from loraplex_server.kernels.cpu.vnni import has_vnni

    if has_tiles():
        return [_Candidate("AMX tiles", TileProduct)]
    return [_Candidate("VNNI", VnniProduct)] if has_vnni() else []


@functools.cache
def _is_exact(product: Callable[[Tensor, Tensor], _Product]) -> bool:
    """Whether the product exists here and is right where it is hardest: pairs of products that pass 16 bits.

    Before VNNI, x86 added two 8-bit products in 16 bits that saturate, and libraries that use those instructions give
    wrong numbers without a word. Packing must also be reversible: its layout is the library's own affair.
    """
    weight = torch.tensor([127, -128, 127, 1], dtype=torch.int8).repeat(64, 16)
    weight[1::2].neg_()
    a = torch.tensor([127.0, 127.0, -127.0, 127.0]).repeat(3, 16)  # of scale 1
    try:
        packed: _Product = product(weight, torch.ones(weight.shape[0]))
        is_right = torch.equal(packed(a, None), (a.int() @ weight.int().t()).float())
        is_reversible = torch.equal(packed.weight(), weight)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        log.info("%r is not available: %s", product, error)
        return False
    return is_right and is_reversible
