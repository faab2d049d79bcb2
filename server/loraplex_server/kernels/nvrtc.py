"""CUDA C++ compiled at start by NVRTC, which torch brings; see `kernel_cache` for what is kept.

Nothing here needs a GPU; the driver's part is in `cuda_driver`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from loraplex_server.errors import KernelError
from loraplex_server.kernels.kernel_cache import kernel_cache, read_kernel, write_kernel

HEADERS = tuple(
    f"{name}.cuh" for name in ("common", "int8", "lora", "nf4", "partial_sums", "row_groups", "tma", "wgmma")
)


def compile_cubin(source: str, defines: Mapping[str, int], arch: str, cache: Path | None = None) -> bytes:
    """Machine code of `kernels/cuda/<source>` for an architecture such as "sm_90a".

    defines   macros of the preprocessor, the parameters that a kernel is specialised by
    cache     folder of earlier results; the user's own by default
    Raises KernelError: no NVRTC, or the source does not compile.
    """
    options = [f"--gpu-architecture={arch}", "--std=c++17", "--extra-device-vectorization"]
    options += [f"-D{name}={value}" for name, value in sorted(defines.items())]
    code = cuda_source(source)
    headers = {name: cuda_source(name) for name in HEADERS}
    nvrtc = _nvrtc()
    folder = cache or kernel_cache()
    key = hashlib.sha256(repr((code, headers, options, nvrtc.version)).encode()).hexdigest()[:32]
    path = folder / f"{Path(source).stem}-{arch}-{key}.cubin"
    cubin = read_kernel(path)
    if cubin is None:
        cubin = nvrtc.compile(source, code, headers, options)
        write_kernel(path, cubin)
    return cubin


def cuda_source(name: str) -> str:
    """Text of a file of `kernels/cuda`."""
    return (files("loraplex_server.kernels") / "cuda" / name).read_text(encoding="utf-8")


class _Nvrtc:
    """The few calls of libnvrtc that compiling takes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)

    def compile(self, name: str, code: str, headers: Mapping[str, str], options: list[str]) -> bytes:
        program = ctypes.c_void_p()
        header_texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        header_names = (ctypes.c_char_p * len(headers))(*(header.encode() for header in headers))
        self._check(
            self._library.nvrtcCreateProgram(
                ctypes.byref(program), code.encode(), name.encode(), len(headers), header_texts, header_names
            )
        )
        try:
            arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if self._library.nvrtcCompileProgram(program, len(options), arguments) != 0:
                log = self._bytes(program, "ProgramLog").decode(errors="replace").strip("\0\n")
                raise KernelError(f"{name} does not compile with {options}:\n{log}")
            return self._bytes(program, "CUBIN")
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        get_size: Callable[..., int] = getattr(self._library, f"nvrtcGet{what}Size")
        self._check(get_size(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        get: Callable[..., int] = getattr(self._library, f"nvrtcGet{what}")
        self._check(get(program, buffer))
        return buffer.raw

    def _check(self, result: int) -> None:
        if result != 0:
            text = self._library.nvrtcGetErrorString
            text.restype = ctypes.c_char_p
            raise KernelError(f"NVRTC: {(text(result) or b'error').decode()}")


@functools.cache
def _nvrtc() -> _Nvrtc:
    for path in [*_packaged_libraries(), "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]:
        try:
            return _Nvrtc(ctypes.CDLL(path))
        except OSError:
            continue
    raise KernelError("libnvrtc was not found; torch's CUDA packages bring it")


def _packaged_libraries() -> list[str]:
    """libnvrtc in the packages that torch depends on, newest first."""
    spec = importlib.util.find_spec("nvidia")
    if spec is None or spec.submodule_search_locations is None:
        return []
    found = [
        path
        for root in spec.submodule_search_locations
        for path in Path(root).glob("*/lib/libnvrtc.so.*")
        if "alt" not in path.name
    ]
    return [str(path) for path in sorted(found, key=lambda path: path.name, reverse=True)]
