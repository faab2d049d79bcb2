"""Compiles a kernel with stand-ins for the headers that speak to the GPU, and runs its blocks one after another."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from torch import Tensor

from loraplex_server.kernels.cuda_driver import Argument
from loraplex_server.kernels.nvrtc import HEADERS, cuda_source

COMPILER = shutil.which("c++")
_FLAGS = ("-std=c++17", "-O1", "-w", "-fPIC", "-shared")
_STAND_INS = ("common.cuh", "emulated_block.cuh", "tma.cuh", "wgmma.cuh")
_DRIVER = """
extern "C" int launch(int columns, int rows, int cluster_rows, int threads, int shared_bytes, int overlaps,
                      void** arguments) {{
    gridDim = {{columns, rows, 1}};
    for (int y = 0; y < rows; y += cluster_rows)
        for (int x = 0; x < columns; ++x) {{
            std::vector<Index> blocks;
            for (int rank = 0; rank < cluster_rows; ++rank) blocks.push_back({{x, y + rank, 0}});
            const Ending ending =
                run_cluster(blocks, threads, shared_bytes, overlaps, [&] {{ {function}({arguments}); }});
            if (ending != AS_IT_SHOULD) return ending;
        }}
    return AS_IT_SHOULD;
}}
"""
_ENDINGS = {
    1: "all threads wait for one another",
    2: "not every thread waits once for the previous kernel",
    3: "a block writes beyond its shared memory",
    4: "a block writes where it has a barrier",
}
_BLOCK_MEMORY = 227 * 1024  # bytes, as on Hopper
_DYNAMIC_SHARED = re.compile(r"extern __shared__ __align__\(\d+\) unsigned char (\w+)\[\];")


class EmulatedKernel:
    """As `CudaKernel`, on a CPU."""

    def __init__(
        self,
        code: str,
        function: str,
        defines: Mapping[str, int],
        threads: int,
        folder: Path,
        shared_bytes: int = _BLOCK_MEMORY,
    ) -> None:
        code = _DYNAMIC_SHARED.sub(r"unsigned char* const \1 = dynamic_shared_memory;", code)
        parameters = re.search(rf"{function}\((.*?)\)\s*{{", code, re.S)
        assert parameters is not None
        types = [part.strip().rsplit(" ", 1)[0] for part in parameters[1].split(",")]
        arguments = ", ".join(
            f"static_cast<{kind}>(arguments[{index}])"
            if "*" in kind
            else f"*static_cast<{kind}*>(arguments[{index}])"
            for index, kind in enumerate(types)
        )
        self._library = _build(code + _DRIVER.format(function=function, arguments=arguments), defines, folder)
        self._threads = threads
        self._shared_bytes = shared_bytes
        self._cluster_rows = defines.get("SK", 1)

    def launch(
        self,
        grid: tuple[int, int],
        arguments: tuple[Argument, ...],
        overlap: bool = False,
        shared_bytes: int | None = None,
    ) -> None:
        """Blocks one after another, on tensors of a CPU; nothing overlaps.

        Raises RuntimeError where all threads of a cluster wait for one another, where not every thread of a kernel that
        may overlap waits once for the one before, and where dynamic memory behind `shared_bytes` or under a barrier is
        written.
        """
        boxed = [_boxed(argument) for argument in arguments]
        addresses = (ctypes.c_void_p * len(boxed))(*(box.value for box in boxed))
        held = self._shared_bytes if shared_bytes is None else shared_bytes
        ending = self._library.launch(*grid, self._cluster_rows, self._threads, held, overlap, addresses)
        if ending:
            raise RuntimeError(_ENDINGS[ending])


def emulated_map(matrix: Tensor, box_rows: int) -> ctypes.Array[ctypes.c_uint64]:
    """As `tensor_map`, for the stand-in of tma.cuh."""
    (rows, columns), size = matrix.shape, matrix.element_size()
    return (ctypes.c_uint64 * 16)(matrix.data_ptr(), rows, columns, matrix.stride(0) * size, size, box_rows)


def _boxed(argument: Argument) -> ctypes.c_void_p:
    """The address of a value, or the one that a tensor is."""
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if argument is None:
        return ctypes.c_void_p(None)
    value = ctypes.c_int(argument) if isinstance(argument, int) else argument
    return ctypes.cast(ctypes.pointer(value), ctypes.c_void_p)


def _build(code: str, defines: Mapping[str, int], folder: Path) -> ctypes.CDLL:
    assert COMPILER is not None
    options = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    name = hashlib.sha256(repr((code, options)).encode()).hexdigest()[:16]
    headers = folder / "headers"
    headers.mkdir(parents=True, exist_ok=True)
    for header in HEADERS:
        (headers / header).write_text(cuda_source(header))
    for header in _STAND_INS:
        (headers / header).write_text((files(__package__) / header).read_text())
    source, library = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(code)
    subprocess.run([COMPILER, *_FLAGS, *options, f"-I{headers}", source, "-o", library], check=True)
    return ctypes.CDLL(str(library))
