"""The CUDA products: which GPUs have them, and their kernels, compiled once for each plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from loraplex_server.kernels.cuda_driver import CudaKernel, device_arch, device_index, load_kernel
from loraplex_server.kernels.nvrtc import compile_cubin
from loraplex_server.kernels.product_choice import (
    INT8_MAX_ROWS,
    NF4_MAX_ROWS,
    int8_plan,
    nf4_plan,
    planned_rows,
)
from loraplex_server.kernels.product_plan import ProductPlan


@functools.cache
def has_cuda_products(device: torch.device) -> bool:
    """Whether the kernels in CUDA C++ run on this device: Hopper. Others take the Triton ones."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def product_kernel(plan: ProductPlan, device: torch.device) -> CudaKernel:
    """Compiled or taken from the cache on disk at its first use.

    Raises KernelError.
    """
    return _kernel(plan, device_index(device))


@functools.cache
def _kernel(plan: ProductPlan, device: int) -> CudaKernel:
    with torch.cuda.device(device):
        return load_kernel(plan.source, plan.function, plan.defines, plan.threads, plan.shared_bytes)


def compile_products(
    nf4_outputs: Iterable[int],
    int8_shapes: Iterable[tuple[int, int]],
    device: torch.device,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Compile every kernel that products will want, several at a time; returns how many.

    nf4_outputs  of weights in NF4
    int8_shapes  (outputs, inputs) of weights in int8
    on_progress  called with how many of them are compiled, and all

    Raises KernelError.
    """
    plans = {nf4_plan(outputs, rows, False) for outputs in nf4_outputs for rows in planned_rows(NF4_MAX_ROWS)}
    plans |= {int8_plan(*shape, rows) for shape in int8_shapes for rows in planned_rows(INT8_MAX_ROWS)}
    arch = device_arch(device)
    with ThreadPoolExecutor() as pool:
        compiled = [pool.submit(compile_cubin, plan.source, plan.defines, arch) for plan in plans]
        for done, future in enumerate(as_completed(compiled), start=1):
            future.result()
            on_progress(done, len(plans))
    for plan in plans:
        product_kernel(plan, device)
    return len(plans)
