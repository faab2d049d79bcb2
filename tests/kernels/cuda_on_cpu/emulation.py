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

from loraplex_server.kernels.nvrtc import cuda_source

COMPILER = shutil.which("c++")
_DRIVER = """
extern "C" void launch(int blocks, int threads, int shared_bytes, void** arguments) {{
    static std::vector<unsigned char> room;
    for (int i = 0; i < blocks; ++i) {{
        room.assign(shared_bytes + 128, 0xff);  // NaN
        dynamic_shared_memory = room.data() + (-reinterpret_cast<uintptr_t>(room.data()) & 127);
        blockIdx = {{i, 0, 0}}, gridDim = {{blocks, 1, 1}};
        run_block(threads, [&] {{ {function}({arguments}); }});
    }}
}}
"""


class EmulatedKernel:
    """As `CudaKernel`, on a CPU."""

    def __init__(self, function: str, defines: Mapping[str, int], threads: int, folder: Path) -> None:
        code = cuda_source(f"{function}.cu")
        parameters = re.search(rf"{function}\((.*?)\)\s*{{", code, re.S)
        assert parameters is not None
        types = [part.strip().rsplit(" ", 1)[0] for part in parameters[1].split(",")]
        arguments = ", ".join(
            f"*static_cast<{kind}*>(arguments[{index}])"
            if kind == "int"
            else f"static_cast<{kind}>(arguments[{index}])"
            for index, kind in enumerate(types)
        )
        code = code.replace(
            "extern __shared__ __align__(128) unsigned char memory[];",
            "unsigned char* const memory = dynamic_shared_memory;",
        )
        self._library = _build(code + _DRIVER.format(function=function, arguments=arguments), defines, folder)
        self._threads = threads

    def launch(self, blocks: int, shared_bytes: int, arguments: tuple[Tensor | int, ...]) -> None:
        """Pointers must be to contiguous memory of a CPU."""
        boxed = [
            ctypes.c_void_p(value.data_ptr())
            if isinstance(value, Tensor)
            else ctypes.cast(ctypes.pointer(ctypes.c_int(value)), ctypes.c_void_p)
            for value in arguments
        ]
        self._library.launch(
            blocks, self._threads, shared_bytes, (ctypes.c_void_p * len(boxed))(*(box.value for box in boxed))
        )


def _build(code: str, defines: Mapping[str, int], folder: Path) -> ctypes.CDLL:
    assert COMPILER is not None
    options = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    name = hashlib.sha256(repr((code, options)).encode()).hexdigest()[:16]
    headers = folder / "headers"
    headers.mkdir(parents=True, exist_ok=True)
    (headers / "lora.cuh").write_text(cuda_source("lora.cuh"))
    (headers / "common.cuh").write_text((files(__package__) / "common.cuh").read_text())
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
