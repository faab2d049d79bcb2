"""AMX tiles in kernels: blocks of 16 rows × 64 bytes whose products x86 CPUs since Sapphire Rapids compute at once."""

from __future__ import annotations

import ctypes
import functools
import platform

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

from loraplex_server.kernels.cpu.runtime import Value, intrinsic

TILE_ROWS = 16
TILE_BYTES = 64  # of a row

_I8, _I64, _VOID = ir.IntType(8), ir.IntType(64), ir.VoidType()
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@functools.cache
def has_tiles() -> bool:
    """Whether this CPU has int8 tiles and the system lets this process use them; asks it to."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    features = llvm.get_host_cpu_features()
    if not (features.get("amx-tile") and features.get("amx-int8")):
        return False
    refused: int = ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return refused == 0


def _call(builder: Value, name: str, arguments: list[Value]) -> None:
    signature = ir.FunctionType(_VOID, [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.{name}"), arguments)


def _pointer(builder: Value, address: Value) -> Value:
    return builder.inttoptr(address, _I8.as_pointer())


@intrinsic
def configure_tiles(typing_context: Value, configuration: Value) -> Value:
    """Take the 64 bytes at an address as this thread's tile configuration."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        _call(builder, "ldtilecfg", [_pointer(builder, values[0])])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def release_tiles(typing_context: Value) -> Value:
    """Forget this thread's tiles, so that they are not saved whenever it is switched."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        _call(builder, "tilerelease", [])
        return context.get_dummy_value()

    return types.void(), generate


def clear_tile(number: int) -> Value:
    """() -> tile `number` = 0."""

    @intrinsic
    def clear(typing_context: Value) -> Value:
        def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
            _call(builder, "tilezero", [_I8(number)])
            return context.get_dummy_value()

        return types.void(), generate

    return clear


def load_tile(number: int) -> Value:
    """(address, stride in bytes) -> tile `number`."""

    @intrinsic
    def load(typing_context: Value, address: Value, stride: Value) -> Value:
        def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
            _call(builder, "tileloadd64", [_I8(number), _pointer(builder, values[0]), values[1]])
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return load


def store_tile(number: int) -> Value:
    """(address, stride in bytes): tile `number` -> memory."""

    @intrinsic
    def store(typing_context: Value, address: Value, stride: Value) -> Value:
        def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
            _call(builder, "tilestored64", [_I8(number), _pointer(builder, values[0]), values[1]])
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return store


def multiply_tiles(target: int, a: int, b: int) -> Value:
    """() -> tile `target` (int32) += tile `a` (int8) · tile `b` (int8, four rows of B in each)."""

    @intrinsic
    def multiply(typing_context: Value) -> Value:
        def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
            _call(builder, "tdpbssd", [_I8(target), _I8(a), _I8(b)])
            return context.get_dummy_value()

        return types.void(), generate

    return multiply
