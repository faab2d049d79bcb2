"""W8A8: y = (x · Wᵀ) · x_scale · w_scale + bias with rows and outputs quantized to int8, summed in int32.

The integer sums are exact, so a row's result depends on that row alone, however many rows there are and wherever it
runs. On Hopper up to 512 rows to bf16 take the kernels in CUDA C++ (`cuda/int8.cu`, `cuda/int8_wide.cu`); other GPUs,
more rows and outputs in fp32 Triton; a CPU plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.product_choice import INT8_MAX_ROWS, int8_plan
from loraplex_server.kernels.product_kernels import has_cuda_products, product_kernel
from loraplex_server.kernels.product_plan import ProductPlan
from loraplex_server.kernels.quantize import QuantizedRows, quantize_rows_reference
from loraplex_server.kernels.tensor_maps import tensor_map
from loraplex_server.kernels.triton_runtime import require

_TILE = 64  # inputs that the CUDA kernel takes at a time
_WEIGHTS_AT_ONCE = 2**24  # while they are quantized, each takes 12 bytes


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """One scale per output, symmetric: weight ≈ values · scale."""

    values: Tensor  # [out, in] int8, contiguous
    scales: Tensor  # [out] fp32

    @classmethod
    def from_dense(cls, weight: Tensor) -> Int8Weight:
        """weight [out, in] of any float dtype; an output of zeros stays zero. What it takes besides is bounded."""
        values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scales = torch.empty(weight.shape[0], device=weight.device)
        rows = max(1, _WEIGHTS_AT_ONCE // weight.shape[1])
        for start in range(0, weight.shape[0], rows):
            some = slice(start, start + rows)
            values[some], row_scales = quantize_rows_reference(weight[some])
            scales[some] = row_scales.view(-1)
        return cls(values, scales)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def dequantized(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return (self.values.float() * self.scales.unsqueeze(1)).to(dtype)


def int8_matmul(
    x: QuantizedRows,
    weight: Int8Weight,
    out: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Write [m, out] into `out` (bf16 or fp32 on a GPU) and return it; nothing else is allocated there.

    bias [out] in the dtype of `out`. Raises ValueError: shapes, formats or layouts do not fit.
    """
    (num_rows, in_features), out_features = x.values.shape, weight.values.shape[0]
    require(
        in_features == weight.values.shape[1] and out.shape == (num_rows, out_features),
        f"x {tuple(x.values.shape)}, weight {tuple(weight.values.shape)} and out {tuple(out.shape)} do not fit",
    )
    require(x.values.is_contiguous() and out.stride(1) == 1, "x and the rows of out must be contiguous")
    if num_rows == 0:
        return out
    if not out.is_cuda:
        return _reference(x, weight, out, bias)
    require(out.dtype in (torch.bfloat16, torch.float32), "the int8 product on a GPU writes bf16 or fp32")
    if _fits_cuda(out, weight) and has_cuda_products(out.device):
        launch_int8(int8_plan(out_features, in_features, num_rows), x, weight, out, bias)
        return out
    from loraplex_server.kernels.int8_triton import int8_matmul_triton

    return int8_matmul_triton(
        x.values, x.scales.view(-1), weight.values, weight.scales, out, bias, _triton_block(num_rows)
    )


def launch_int8(
    plan: ProductPlan,
    x: QuantizedRows,
    weight: Int8Weight,
    out: Tensor,
    bias: Tensor | None,
) -> None:
    """The CUDA product as `plan` cuts it; operands as `int8_matmul` has checked them."""
    (num_rows, in_features), out_features = x.values.shape, weight.values.shape[0]
    product_kernel(plan, out.device).launch(
        plan.grid(out_features, num_rows),
        (
            tensor_map(weight.values, 64) if plan.is_wide else weight.values,
            weight.scales,
            tensor_map(x.values, plan.nt * 8) if plan.is_wide else x.values,
            x.scales,
            bias,
            out,
            num_rows,
            out_features,
            -(-in_features // plan.k_tile),
            out.stride(0),
        ),
        overlap=True,
    )


def _fits_cuda(out: Tensor, weight: Int8Weight) -> bool:
    out_features, in_features = weight.values.shape
    is_even = out_features % 2 == 0 and out.stride(0) % 2 == 0
    return out.dtype == torch.bfloat16 and len(out) <= INT8_MAX_ROWS and in_features % _TILE == 0 and is_even


def _reference(x: QuantizedRows, weight: Int8Weight, out: Tensor, bias: Tensor | None) -> Tensor:
    # fp64 holds every such sum exactly; torch's own product of int8 saturates on some CPUs.
    sums = x.values.double() @ weight.values.double().t()
    y = sums.float() * (x.scales.view(-1, 1) * weight.scales)
    return out.copy_(y if bias is None else y + bias.float())


def _triton_block(num_rows: int) -> tuple[int, int, int, int, int]:
    if num_rows > 64:
        return 128, 128, 128, 4, 3
    return max(16, 1 << (num_rows - 1).bit_length()), 64, 256, 4, 3
