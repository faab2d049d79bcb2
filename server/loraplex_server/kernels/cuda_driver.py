"""Launching compiled kernels on torch's current stream, through the CUDA driver's own interface."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from loraplex_server.errors import KernelError
from loraplex_server.kernels.nvrtc import compile_cubin

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SHARED_CARVEOUT = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent
_PREFER_SHARED = 1  # CU_FUNC_CACHE_PREFER_SHARED
_PROGRAMMATIC_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_CAPTURE_ACTIVE = 1  # CU_STREAM_CAPTURE_STATUS_ACTIVE
_SET_DEPENDENCIES = 1  # CU_STREAM_SET_CAPTURE_DEPENDENCIES
_PROGRAMMATIC_PORT, _PROGRAMMATIC_EDGE = (
    1,
    1,
)  # CU_GRAPH_KERNEL_NODE_PORT_.., CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC

Argument = Tensor | int | ctypes.Structure | ctypes.Array[ctypes.c_uint64] | None
"""Of a kernel: a tensor's address, a 32-bit int, a structure or an array by value, or a null address."""


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint), ("pad", ctypes.c_uint), ("value", ctypes.c_uint64 * 8))


class _LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


class _EdgeData(ctypes.Structure):
    _fields_ = (
        ("from_port", ctypes.c_ubyte),
        ("to_port", ctypes.c_ubyte),
        ("type", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte * 5),
    )


class CudaKernel:
    """One function of a loaded module, with its block and its dynamic shared memory fixed."""

    def __init__(self, function: ctypes.c_void_p, threads: int, shared_bytes: int) -> None:
        """Raises KernelError where a block of this GPU has less shared memory."""
        self._function = function
        self._threads = threads
        self._shared_bytes = shared_bytes
        if shared_bytes:
            check(driver().cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared_bytes))
        # A multiprocessor divides its memory anew between the first-level cache and shared memory only when nothing
        # runs there: a kernel that finds too little of it waits for all others to end, however much could be had.
        check(driver().cuFuncSetAttribute(function, _SHARED_CARVEOUT, 100))
        self._attribute = _Attribute(_PROGRAMMATIC_SERIALIZATION)
        self._attribute.value[0] = 1

    def launch(self, grid: tuple[int, int], arguments: tuple[Argument, ...], overlap: bool = False) -> None:
        """Run a grid of blocks on torch's current stream; capturable in a graph.

        overlap   start before the stream's previous kernel has ended (programmatic dependent launch). The kernel
                  itself waits before it reads what that one wrote; the next kernel must do the same.
        """
        boxed = [_boxed(argument) for argument in arguments]
        addresses = (ctypes.c_void_p * len(boxed))(*(ctypes.addressof(box) for box in boxed))
        config = _LaunchConfig(
            (*grid, 1),
            (self._threads, 1, 1),
            self._shared_bytes,
            torch.cuda.current_stream().cuda_stream,
            ctypes.pointer(self._attribute) if overlap else None,
            1 if overlap else 0,
        )
        check(driver().cuLaunchKernelEx(ctypes.byref(config), self._function, addresses, None))


def prefer_shared_memory(device: torch.device) -> None:
    """Kernels of other makers too leave a multiprocessor's memory divided as `CudaKernel` wants it."""
    with torch.cuda.device(device):
        torch.cuda.current_stream()  # makes the context
        check(driver().cuCtxSetCacheConfig(_PREFER_SHARED))


def has_capture_edges() -> bool:
    """Whether a captured kernel can depend on others in another way than by their end: from CUDA 12.3 on."""
    return all(
        hasattr(driver(), name)
        for name in ("cuStreamGetCaptureInfo_v3", "cuStreamUpdateCaptureDependencies_v2")
    )


def overlap_captured_kernels(before: torch.cuda.Stream, stream: torch.cuda.Stream) -> None:
    """The next kernel captured on `stream` follows those that `before` ends with, and may start before they have ended.

    As `overlap` of a launch, which a kernel with several predecessors, or with one on another stream, is not granted.
    Nothing happens outside a capture. All of these kernels must wait as programmatic dependent launch wants it, and the
    driver must have edges of captures.
    """
    status, count = ctypes.c_int(), ctypes.c_size_t()
    identity, graph = ctypes.c_uint64(), ctypes.c_void_p()
    nodes, edges = ctypes.POINTER(ctypes.c_void_p)(), ctypes.POINTER(_EdgeData)()
    check(
        driver().cuStreamGetCaptureInfo_v3(
            ctypes.c_void_p(before.cuda_stream),
            *(ctypes.byref(value) for value in (status, identity, graph, nodes, edges, count)),
        )
    )
    if status.value != _CAPTURE_ACTIVE:
        return
    kernels = (ctypes.c_void_p * count.value)(*nodes[: count.value])
    overlapping = (_EdgeData * count.value)(
        *[_EdgeData(_PROGRAMMATIC_PORT, 0, _PROGRAMMATIC_EDGE)] * count.value
    )
    check(
        driver().cuStreamUpdateCaptureDependencies_v2(
            ctypes.c_void_p(stream.cuda_stream), kernels, overlapping, count, _SET_DEPENDENCIES
        )
    )


def load_kernel(
    source: str, function: str, defines: Mapping[str, int], threads: int, shared_bytes: int = 0
) -> CudaKernel:
    """Compile (or take from the cache on disk) and load into torch's current device.

    Raises KernelError: the source does not compile, or the GPU refuses it.
    """
    torch.cuda.current_stream()  # makes the context that the driver loads into
    device = torch.cuda.current_device()
    module = _module(
        source, tuple(sorted(defines.items())), device_arch(torch.device("cuda", device)), device
    )
    handle = ctypes.c_void_p()
    check(driver().cuModuleGetFunction(ctypes.byref(handle), module, function.encode()))
    return CudaKernel(handle, threads, shared_bytes)


def device_index(device: torch.device) -> int:
    """Of the device, or of the current one where it has none."""
    return device.index if device.index is not None else torch.cuda.current_device()


def device_arch(device: torch.device) -> str:
    """What NVRTC compiles for, such as "sm_90a"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")


_load_lock = threading.Lock()


@functools.cache
def _module(source: str, defines: tuple[tuple[str, int], ...], arch: str, device: int) -> ctypes.c_void_p:
    del device  # a module belongs to one device's context
    cubin = compile_cubin(source, dict(defines), arch)
    module = ctypes.c_void_p()
    with _load_lock:
        check(driver().cuModuleLoadData(ctypes.byref(module), cubin))
    return module


def _boxed(
    argument: Argument,
) -> ctypes.c_void_p | ctypes.c_int | ctypes.Structure | ctypes.Array[ctypes.c_uint64]:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, ctypes.Structure | ctypes.Array):
        return argument
    return ctypes.c_void_p(None) if argument is None else ctypes.c_int(argument)


@functools.cache
def driver() -> ctypes.CDLL:
    """The CUDA driver's library. Raises KernelError where there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise KernelError(f"no NVIDIA driver: {error}") from error


def check(result: int) -> None:
    """Raises KernelError unless a call of the driver went well."""
    if result != 0:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(result, ctypes.byref(text))
        raise KernelError(f"CUDA driver: {(text.value or b'unknown error').decode()} ({result})")
