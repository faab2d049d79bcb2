"""Numba where it is installed: how kernels for CPUs are compiled, kept on disk and run on torch's own threads.

Importing this module imports Numba; `loraplex_server.kernels.fastest_ops` does so only for a decoder on a CPU.

A kernel takes addresses and sizes, all of them Python integers: each has one signature, known before the first call,
and a launch costs a microsecond. The launchers in `ops` check what lies at those addresses.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import llvmlite.binding as llvm
import numba
import torch
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from loraplex_server.kernels.kernel_cache import kernel_cache

log = logging.getLogger(__name__)

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
Value: TypeAlias = Any  # of a type that Numba infers

intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic
"""Marks what returns (signature, generator of LLVM code) as callable from kernels."""

# Sums may be reordered and fused, which vectorizing needs; division stays division, infinity stays infinity.
_FAST_MATH = {"nnan", "nsz", "contract", "reassoc"}


def _version() -> str:
    """Digest of the sources of all kernels: Numba looks only at the file of the function that it compiles."""
    digest = hashlib.sha256(f"{numba.__version__} {torch.__version__}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _use_disk_cache() -> bool:
    """Point Numba at our folder; False where nothing can be written, and every start compiles."""
    folder = kernel_cache() / _version()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("compiled kernels cannot be kept: %s", error)
        return False
    numba.config.CACHE_DIR = str(folder)
    return os.access(folder, os.W_OK)


def inlined(function: Kernel) -> Kernel:
    """Compile a piece of kernels that is always inlined."""
    compiled: Kernel = numba.njit(forceinline=True, fastmath=_FAST_MATH, error_model="numpy")(function)
    return compiled


def exact(function: Kernel) -> Kernel:
    """Compile a piece of kernels that is always inlined, with its arithmetic in the order as it is written."""
    compiled: Kernel = numba.njit(forceinline=True, fastmath={"contract"}, error_model="numpy")(function)
    return compiled


def strict(function: Kernel) -> Kernel:
    """Compile a piece of kernels that is always inlined, with every operation as written and rounded by itself.

    A caller's own freedom ends here, also for what `vectors` generates; so the number of rows, where the compiler
    knows it, cannot change a result.
    """
    # Left out, `fastmath` would be the caller's.
    compiled: Kernel = numba.njit(forceinline=True, fastmath=False, error_model="numpy")(function)
    return compiled


def body(function: Kernel) -> Kernel:
    """Compile the part of a kernel that one thread runs: its last parameters are the items [start, stop)."""
    compiled: Kernel = numba.njit(fastmath=_FAST_MATH, error_model="numpy")(function)
    return compiled


def kernel(function: Kernel) -> Kernel:
    """Compile what Python launches, and keep it on disk for the next start."""
    compiled: Kernel = numba.njit(cache=_use_disk_cache(), error_model="numpy")(function)
    return compiled


_TYPES = {"int": types.int64, "float": types.float64, "bool": types.boolean}


def prepare(*kernels: Callable[..., Any]) -> None:
    """Compile kernels, or read what an earlier start compiled, so that no request has to wait for it."""
    for compiled in kernels:
        function: Any = compiled
        parameters = inspect.signature(function.py_func).parameters.values()
        function.compile(tuple(_TYPES[parameter.annotation] for parameter in parameters))


@intrinsic
def parallel(typing_context: Value, function: Value, arguments: Value, count: Value, threads: Value) -> Value:
    """function(*arguments, start, stop) over [0, count), in equal parts on `threads` threads; 1 calls it right here.

    `threads` is 1 or the size of torch's team: OpenMP ends the threads that a smaller team leaves out. The threads
    are torch's, still awake from its last product, so that no second pool fights with them for the cores.
    """
    argument_types = (*arguments.types, types.intp, types.intp)

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        dispatcher = signature.args[0].dispatcher
        dispatcher.compile(argument_types)
        compiled = dispatcher.overloads[argument_types]
        context.active_code_library.add_linking_library(compiled.library)
        function_pointer = context.declare_function(builder.module, compiled.fndesc)
        _, packed, count_value, threads_value = values

        def call(at: Value, packed_value: Value, start: Value, stop: Value) -> None:
            unpacked = [at.extract_value(packed_value, i) for i in range(len(arguments.types))]
            context.call_conv.call_function(
                at, function_pointer, types.none, argument_types, [*unpacked, start, stop]
            )

        size, address = ir.IntType(64), ir.IntType(8).as_pointer()
        is_serial = builder.icmp_signed("<=", threads_value, size(1))
        with builder.if_else(is_serial) as (serial, spread):
            with serial:
                call(builder, packed, size(0), count_value)
            with spread:
                shared = cgutils.alloca_once_value(
                    builder, cgutils.pack_struct(builder, [packed, count_value])
                )
                outlined = _outline(builder.module, shared.type, call)
                spawn_type = ir.FunctionType(
                    ir.VoidType(), [outlined.type, address, ir.IntType(32), ir.IntType(32)]
                )
                spawn = cgutils.get_or_insert_function(builder.module, spawn_type, _SYMBOL + "GOMP_parallel")
                team = builder.trunc(threads_value, ir.IntType(32))
                builder.call(spawn, [outlined, builder.bitcast(shared, address), team, ir.IntType(32)(0)])
        return context.get_dummy_value()

    return types.void(function, arguments, types.intp, types.intp), generate


def _outline(module: Value, shared_type: Value, call: Callable[..., None]) -> Value:
    """What each thread of a team runs: its part of `shared` = (arguments, count)."""
    size = ir.IntType(64)
    function_type = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    outlined = ir.Function(module, function_type, name=module.get_unique_name("outlined"))
    outlined.linkage = "internal"
    builder = ir.IRBuilder(outlined.append_basic_block("entry"))
    shared = builder.load(builder.bitcast(outlined.args[0], shared_type))
    packed, count = builder.extract_value(shared, 0), builder.extract_value(shared, 1)

    def ask(name: str) -> Value:
        question = cgutils.get_or_insert_function(module, ir.FunctionType(ir.IntType(32), []), _SYMBOL + name)
        return builder.sext(builder.call(question, []), size)

    me, team = ask("omp_get_thread_num"), ask("omp_get_num_threads")
    start = builder.sdiv(builder.mul(count, me), team)
    stop = builder.sdiv(builder.mul(count, builder.add(me, size(1))), team)
    call(builder, packed, start, stop)
    builder.ret_void()
    return outlined


_SYMBOL = "loraplex_"
_OPENMP_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


def _bind_openmp() -> bool:
    """Give compiled code the OpenMP that torch has loaded; False where there is none of GNU's interface."""
    library = _loaded_openmp()
    for name in _OPENMP_FUNCTIONS:
        function = getattr(library, name, None) if library is not None else None
        # Code refers to all of them, even where `parallel` never takes the path that calls them.
        pointer = ctypes.cast(function, ctypes.c_void_p).value if function is not None else 1
        llvm.add_symbol(_SYMBOL + name, pointer)
    return library is not None and all(hasattr(library, name) for name in _OPENMP_FUNCTIONS)


def _loaded_openmp() -> ctypes.CDLL | None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "omp" in line and ".so" in line}
    names = ("libgomp", "libiomp5", "libomp")
    torch_folder = str(Path(torch.__file__).parent)
    found = [path for path in paths if Path(path).name.startswith(names)]
    found.sort(key=lambda path: not path.startswith(torch_folder))  # torch's own first
    return ctypes.CDLL(found[0]) if found else None


HAS_OPENMP = _bind_openmp()
