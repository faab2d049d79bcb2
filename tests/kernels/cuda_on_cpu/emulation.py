"""Compiles a kernel with the stand-in for common.cuh and runs its blocks one after another."""

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

from loraplex_server.kernels.nvrtc import HEADERS, cuda_source

COMPILER = shutil.which("c++")
_DRIVER = """
extern "C" void launch(int columns, int rows, int threads, void** arguments) {{
    gridDim = {{columns, rows, 1}};
    for (int y = 0; y < rows; ++y)
        for (int x = 0; x < columns; ++x) {{
            blockIdx = {{x, y, 0}};
            run_block(threads, [&] {{ {function}({arguments}); }});
        }}
}}
"""


_DYNAMIC_SHARED = re.compile(r"extern __shared__ __align__\(\d+\) unsigned char (\w+)\[\];")


class EmulatedKernel:
    """As `CudaKernel`, on a CPU."""

    def __init__(
        self, code: str, function: str, defines: Mapping[str, int], threads: int, folder: Path
    ) -> None:
        code = _DYNAMIC_SHARED.sub(r"unsigned char* const \1 = dynamic_shared_memory;", code)
        parameters = re.search(rf"{function}\((.*?)\)\s*{{", code, re.S)
        assert parameters is not None
        types = [part.strip().rsplit(" ", 1)[0] for part in parameters[1].split(",")]
        arguments = ", ".join(
            f"*static_cast<{kind}*>(arguments[{index}])"
            if kind == "int"
            else f"static_cast<{kind}>(arguments[{index}])"
            for index, kind in enumerate(types)
        )
        self._library = _build(code + _DRIVER.format(function=function, arguments=arguments), defines, folder)
        self._threads = threads

    def launch(
        self, grid: tuple[int, int], arguments: tuple[Tensor | int | None, ...], overlap: bool = False
    ) -> None:
        """Blocks one after another, on tensors of a CPU; nothing overlaps."""
        del overlap
        boxed = [
            ctypes.cast(ctypes.pointer(ctypes.c_int(value)), ctypes.c_void_p)
            if isinstance(value, int)
            else ctypes.c_void_p(None if value is None else value.data_ptr())
            for value in arguments
        ]
        addresses = (ctypes.c_void_p * len(boxed))(*(box.value for box in boxed))
        self._library.launch(*grid, self._threads, addresses)


def _build(code: str, defines: Mapping[str, int], folder: Path) -> ctypes.CDLL:
    assert COMPILER is not None
    options = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    name = hashlib.sha256(repr((code, options)).encode()).hexdigest()[:16]
    headers = folder / "headers"
    headers.mkdir(parents=True, exist_ok=True)
    for header in HEADERS:
        (headers / header).write_text(cuda_source(header))
    for header in ("common.cuh", "emulated_block.cuh"):
        (headers / header).write_text((files(__package__) / header).read_text())
    source, library = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(code)
    subprocess.run(
        [
            COMPILER,
            "-std=c++17",
            "-O1",
            "-w",
            "-fPIC",
            "-shared",
            *options,
            f"-I{headers}",
            source,
            "-o",
            library,
        ],
        check=True,
    )
    return ctypes.CDLL(str(library))
