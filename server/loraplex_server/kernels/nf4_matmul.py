"""y = x · Wᵀ + bias with a weight in NF4, which memory brings once for up to 768 rows.

On Hopper the kernels are CUDA C++ (`cuda/nf4.cu`, `cuda/nf4_wide.cu`), elsewhere Triton, up to 128 rows; on a CPU plain
torch. For more rows the weight is dequantized to a scratch buffer and cuBLAS multiplies.

Accuracy against exact arithmetic over the weights table × scale, rounding of the result to bf16 included: relative
error of a whole output under 3e-3, and under 4e-3 at 17 to 768 rows, where each weight is scaled in bf16. `exact`
rounds each weight to bf16 first, as bitsandbytes does and as it is with more rows, so that the product differs from
bitsandbytes' own in the order of summation alone.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from loraplex_server.kernels.cuda_driver import CudaKernel, load_kernel
from loraplex_server.kernels.nf4_weight import BLOCK_SIZE, TILE_ROWS, Nf4Weight
from loraplex_server.kernels.product_choice import NF4_MAX_ROWS, nf4_plan
from loraplex_server.kernels.product_kernels import has_cuda_products, product_kernel
from loraplex_server.kernels.product_plan import ProductPlan
from loraplex_server.kernels.tensor_maps import tensor_map
from loraplex_server.kernels.triton_runtime import require

_TRITON_MAX_ROWS = 128  # its programs decode the weight once for each 64 rows
_TILES_PER_BLOCK = 8  # of the dequantizing kernel


def nf4_matmul(
    x: Tensor,
    weight: Nf4Weight,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    exact: bool = False,
) -> Tensor:
    """x [m, in] -> [m, out], written to `out` if it is given: then nothing is allocated for m ≤ 768.

    On a GPU x, out and bias [out] are bf16; rows of x and out are contiguous, x is aligned to 16 bytes, and the number
    of outputs is even. A row's result does not depend on what the other rows are; on Hopper it is the same bits at
    every m within 1..16, 17..32, 33..64, 65..96 and 97..128, while above their number decides the order of summation.
    Raises ValueError: x or out is not of such a shape, format or alignment. KernelError: see `load_kernel`.
    """
    num_rows = x.shape[0]
    require(
        x.dim() == 2 and x.shape[1] == weight.in_features,
        f"x {tuple(x.shape)} does not fit a weight of {weight.in_features} inputs",
    )
    if out is None:
        out = x.new_empty(num_rows, weight.out_features)
    require(
        out.shape == (num_rows, weight.out_features) and out.dtype == x.dtype,
        f"out {tuple(out.shape)} {out.dtype} is not {(num_rows, weight.out_features)} {x.dtype}",
    )
    if num_rows == 0:
        return out
    if x.is_cuda:
        _check_layout(x, out, bias)
    has_cuda = has_cuda_products(x.device)
    if num_rows > (NF4_MAX_ROWS if has_cuda else _TRITON_MAX_ROWS) or not x.is_cuda:
        return _dequantize_and_multiply(x, weight, out, bias)
    if not has_cuda:
        from loraplex_server.kernels.nf4_triton import nf4_matmul_triton

        return nf4_matmul_triton(x, weight, out, bias)
    launch_nf4(nf4_plan(weight.out_features, num_rows, exact), x, weight, out, bias)
    return out


def launch_nf4(
    plan: ProductPlan,
    x: Tensor,
    weight: Nf4Weight,
    out: Tensor,
    bias: Tensor | None,
) -> None:
    """The CUDA product as `plan` cuts it; operands as `nf4_matmul` has checked them."""
    num_rows = x.shape[0]
    product_kernel(plan, x.device).launch(
        plan.grid(weight.out_features, num_rows),
        (
            weight.records,
            tensor_map(x, plan.nt * 8) if plan.is_wide else x,
            bias,
            out,
            num_rows,
            weight.out_features,
            weight.in_features // BLOCK_SIZE,
            *(() if plan.is_wide else (x.stride(0),)),
            out.stride(0),
        ),
        overlap=True,
    )


def nf4_dequantize(weight: Nf4Weight, out: Tensor) -> Tensor:
    """Write the bf16 weight [out, in], bit-equal to bitsandbytes', on the device; returns out."""
    if not has_cuda_products(weight.device):
        return out.copy_(weight.dequantized(out.dtype))
    k_tiles = weight.in_features // BLOCK_SIZE
    tiles = -(-weight.out_features // TILE_ROWS) * k_tiles
    _dequantize_kernel(weight.device.index).launch(
        (-(-tiles // _TILES_PER_BLOCK), 1), (weight.records, out, weight.out_features, k_tiles), overlap=True
    )
    return out


def _dequantize_and_multiply(x: Tensor, weight: Nf4Weight, out: Tensor, bias: Tensor | None) -> Tensor:
    if x.is_cuda:
        dense = nf4_dequantize(weight, _scratch(x.device, weight.out_features * weight.in_features)).view(
            weight.out_features, weight.in_features
        )
    else:
        dense = weight.dequantized(x.dtype)
    if bias is None:
        return torch.mm(x, dense.t(), out=out)
    return torch.addmm(bias, x, dense.t(), out=out)


def _check_layout(x: Tensor, out: Tensor, bias: Tensor | None) -> None:
    tensors = [x, out] if bias is None else [x, out, bias]
    require(all(tensor.dtype == torch.bfloat16 for tensor in tensors), "the NF4 product on a GPU takes bf16")
    require(
        x.stride(1) == 1 and out.stride(1) == 1 and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0,
        "rows of x and out must be contiguous, and those of x aligned to 16 bytes",
    )
    require(out.shape[1] % 2 == 0 and out.stride(0) % 2 == 0, "the number of outputs must be even")


_scratches: dict[torch.device, Tensor] = {}


def _scratch(device: torch.device, size: int) -> Tensor:
    """One bf16 buffer per device, as large as the largest weight so far: products of one stream follow each other."""
    buffer = _scratches.get(device)
    if buffer is None or buffer.numel() < size:
        buffer = _scratches[device] = torch.empty(size, dtype=torch.bfloat16, device=device)
    return buffer[:size]


@functools.cache
def _dequantize_kernel(device_index: int) -> CudaKernel:
    with torch.cuda.device(device_index):
        return load_kernel("nf4_dequantize.cu", "nf4_dequantize", {}, threads=32 * _TILES_PER_BLOCK)
