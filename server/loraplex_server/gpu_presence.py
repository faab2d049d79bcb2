"""Whether there is a GPU, asked of NVIDIA's driver: the front end gets along without torch."""

from __future__ import annotations

import ctypes

from loraplex_server.config import ConfigError
from loraplex_server.engine.config import Device

_DRIVER = "libcuda.so.1"


def check_device(device: Device) -> None:
    """Raises ConfigError where a GPU is asked for and there is none. The engine decides what it can do with one."""
    if device == "cuda" and num_gpus() == 0:
        raise ConfigError(
            "device=cuda, but NVIDIA's driver finds no GPU here (see nvidia-smi and CUDA_VISIBLE_DEVICES); "
            "take device=cpu or auto"
        )


def num_gpus() -> int:
    """GPUs that this process may use; 0 without a driver."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
