"""Who does what stands between the products: chosen once, from device and dtype, when a decoder is built."""

from __future__ import annotations

import importlib.util

import torch

from loraplex_server.kernels.layer_ops import LayerOps, TorchOps


def layer_ops(device: torch.device, dtype: torch.dtype) -> LayerOps:
    """The fastest for activations of `dtype` on `device`: fused kernels for fp32 on a CPU where Numba is installed."""
    if device.type == "cpu" and dtype == torch.float32 and importlib.util.find_spec("numba") is not None:
        from loraplex_server.kernels.cpu.ops import CpuOps

        return CpuOps()
    return TorchOps()
