"""Vectors of 16 fp32 as values in kernels, where the compiler does not find them by itself.

LLVM maps them to whatever registers the CPU has. Addresses need no alignment.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default

from loraplex_server.kernels.cpu.runtime import Value, intrinsic

LANES = 16
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)


class _VectorType(types.Type):  # type: ignore[misc]
    """The type of a vector for Numba."""

    def __init__(self) -> None:
        super().__init__(name="floats16")


@register_default(_VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _FLOATS)


VECTOR = _VectorType()


def _splat(builder: Value, value: Value) -> Value:
    one = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined), value, _index(0)
    )
    return builder.shuffle_vector(one, one, ir.Constant(_INTS, [0] * LANES))


def _index(i: int) -> ir.Constant:
    return ir.Constant(ir.IntType(32), i)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * LANES)


@intrinsic
def load(typing_context: Value, address: Value) -> Value:
    """16 fp32 at an address."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        return builder.load(builder.inttoptr(values[0], _FLOATS.as_pointer()), align=4)

    return VECTOR(types.intp), generate


@intrinsic
def load_bf16(typing_context: Value, address: Value) -> Value:
    """16 bf16 at an address."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        short = builder.load(builder.inttoptr(values[0], _SHORTS.as_pointer()), align=2)
        return builder.bitcast(builder.shl(builder.zext(short, _INTS), _constant(16)), _FLOATS)

    return VECTOR(types.intp), generate


@intrinsic
def load_int32(typing_context: Value, address: Value) -> Value:
    """16 int32 at an address, as fp32."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        return builder.sitofp(builder.load(builder.inttoptr(values[0], _INTS.as_pointer()), align=4), _FLOATS)

    return VECTOR(types.intp), generate


@intrinsic
def store(typing_context: Value, address: Value, vector: Value) -> Value:
    """16 fp32 to an address."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        builder.store(values[1], builder.inttoptr(values[0], _FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, VECTOR), generate


@intrinsic
def store_bf16(typing_context: Value, address: Value, vector: Value) -> Value:
    """16 bf16 to an address: to nearest, ties to even; a NaN stays one."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        bits = builder.bitcast(values[1], _INTS)
        odd = builder.and_(builder.lshr(bits, _constant(16)), _constant(1))
        rounded = builder.lshr(builder.add(builder.add(bits, _constant(0x7FFF)), odd), _constant(16))
        is_nan = builder.icmp_signed(">", builder.and_(bits, _constant(0x7FFFFFFF)), _constant(0x7F800000))
        short = builder.trunc(builder.select(is_nan, _constant(0x7FC0), rounded), _SHORTS)
        builder.store(short, builder.inttoptr(values[0], _SHORTS.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(types.intp, VECTOR), generate


@intrinsic
def splat(typing_context: Value, number: Value) -> Value:
    """16 times the same fp32."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        return _splat(builder, values[0])

    return VECTOR(types.float32), generate


@intrinsic
def multiply(typing_context: Value, a: Value, b: Value) -> Value:
    """a · b."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        return builder.fmul(*values)

    return VECTOR(VECTOR, VECTOR), generate


@intrinsic
def multiply_add(typing_context: Value, a: Value, b: Value, c: Value) -> Value:
    """a · b + c, rounded once."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        signature = ir.FunctionType(_FLOATS, [_FLOATS, _FLOATS, _FLOATS])
        fma = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{LANES}f32")
        return builder.call(fma, values)

    return VECTOR(VECTOR, VECTOR, VECTOR), generate


@intrinsic
def add(typing_context: Value, a: Value, b: Value) -> Value:
    """a + b."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        return builder.fadd(*values)

    return VECTOR(VECTOR, VECTOR), generate


@intrinsic
def subtract(typing_context: Value, a: Value, b: Value) -> Value:
    """a - b."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        return builder.fsub(*values)

    return VECTOR(VECTOR, VECTOR), generate


@intrinsic
def total(typing_context: Value, vector: Value) -> Value:
    """The sum of the 16, always in the same order."""

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        vector, width = values[0], LANES
        while width > 1:
            width //= 2
            upper = [*range(width, 2 * width), *[0] * (LANES - width)]
            vector = builder.fadd(vector, builder.shuffle_vector(vector, vector, ir.Constant(_INTS, upper)))
        return builder.extract_element(vector, _index(0))

    return types.float32(VECTOR), generate
