"""Numbers in kernels for CPUs: memory at an address, bf16 as bits, and an exponential that vectorizes."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils

from loraplex_server.kernels.cpu.runtime import Value, exact, inlined, intrinsic

FLOAT_BYTES = 4
_I32 = ir.IntType(32)
ZERO, ONE = np.float32(0), np.float32(1)

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)
# Cephes, expf: exp(r) = 1 + r + r² · p(r) for |r| <= ln(2) / 2, to about one unit in the last place.
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)


def _pointer_to(element: Value) -> Value:
    @intrinsic
    def pointer(typing_context: Value, address: Value) -> Value:
        def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.intp), generate

    return pointer


_float_pointer = _pointer_to(types.float32)
_bf16_pointer = _pointer_to(types.uint16)
_int8_pointer = _pointer_to(types.int8)
_int32_pointer = _pointer_to(types.int32)
_int64_pointer = _pointer_to(types.int64)


@inlined
def floats(address: int, length: int) -> Value:
    """`length` fp32 at an address."""
    return carray(_float_pointer(address), (length,))


@inlined
def bf16s(address: int, length: int) -> Value:
    """`length` bf16 at an address, as bits."""
    return carray(_bf16_pointer(address), (length,))


@inlined
def int8s(address: int, length: int) -> Value:
    """`length` int8 at an address."""
    return carray(_int8_pointer(address), (length,))


@inlined
def int32s(address: int, length: int) -> Value:
    """`length` int32 at an address."""
    return carray(_int32_pointer(address), (length,))


@inlined
def int64s(address: int, length: int) -> Value:
    """`length` int64 at an address."""
    return carray(_int64_pointer(address), (length,))


@intrinsic
def _float_of_bits(typing_context: Value, bits: Value) -> Value:
    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def float_of_bf16(typing_context: Value, bits: Value) -> Value:
    """uint16 -> fp32."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        return builder.bitcast(builder.shl(builder.zext(values[0], _I32), _I32(16)), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def bf16_of_float(typing_context: Value, number: Value) -> Value:
    """fp32 -> uint16: to nearest, ties to even; a NaN stays one."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        bits = builder.bitcast(values[0], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.lshr(builder.add(builder.add(bits, _I32(0x7FFF)), odd), _I32(16))
        is_nan = builder.icmp_signed(">", builder.and_(bits, _I32(0x7FFFFFFF)), _I32(0x7F800000))
        return builder.trunc(builder.select(is_nan, _I32(0x7FC0), rounded), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def int8_of_float(typing_context: Value, number: Value) -> Value:
    """fp32 -> int8: to nearest, ties to even, for |number| <= 127."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        rint = builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()])
        return builder.trunc(builder.fptosi(builder.call(rint, [values[0]]), _I32), ir.IntType(8))

    return types.int8(types.float32), generate


@intrinsic
def larger_magnitude(typing_context: Value, magnitude: Value, number: Value) -> Value:
    """max(magnitude, |number|), both as the bits of an fp32: integers, so that a maximum over a row vectorizes."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        bits = builder.and_(builder.bitcast(values[1], _I32), _I32(0x7FFFFFFF))
        return builder.select(builder.icmp_signed(">", bits, values[0]), bits, values[0])

    return types.int32(types.int32, types.float32), generate


@intrinsic
def larger(typing_context: Value, a: Value, b: Value) -> Value:
    """max(a, b) of two fp32 that are numbers."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        number = ir.FloatType()
        maxnum = builder.module.declare_intrinsic(
            "llvm.maxnum", [number], ir.FunctionType(number, [number, number])
        )
        return builder.call(maxnum, values, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), generate


@intrinsic
def prefetch(typing_context: Value, address: Value) -> Value:
    """Start to fetch the cache line at an address, which may be past the end of anything."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        pointer = builder.inttoptr(values[0], ir.IntType(8).as_pointer())
        signature = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        builder.call(fetch, [pointer, _I32(0), _I32(2), _I32(1)])  # to read, into the second cache, as data
        return context.get_dummy_value()

    return types.void(types.intp), generate


@inlined
def magnitude_of_bits(bits: Value) -> Value:
    return _float_of_bits(bits)


@exact
def exp(x: Value) -> Value:
    """e^x for -87 <= x <= 88; what lies outside counts as the nearer bound."""
    x = min(max(x, _LOWEST), _HIGHEST)
    n = np.rint(x * _LOG2_E)
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    power = _float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
    return (p * (r * r) + r + ONE) * power
