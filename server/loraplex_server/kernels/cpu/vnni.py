"""VNNI in kernels: 64 products of unsigned and signed bytes an instruction, added to int32 in fours, exactly."""

from __future__ import annotations

import functools
import platform

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

from loraplex_server.kernels.cpu.runtime import Value, intrinsic

MAX_DOT_ROWS = 12  # two registers of sums each, out of 32
_LANES = 16  # outputs of a register
_QUAD = 4  # inputs of a lane, in bytes
_REGISTER = 64  # bytes
_HALF = 16 * _REGISTER  # bytes of a step's 64 inputs of 16 outputs
_UNROLLED = 4  # quads

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_INTS = ir.VectorType(_I32, _LANES)


@functools.cache
def has_vnni() -> bool:
    """Whether this CPU has VNNI for registers of 512 bits."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return bool(llvm.get_host_cpu_features().get("avx512vnni"))


@intrinsic
def dot_rows(
    typing_context: Value,
    rows: Value,
    a: Value,
    stride: Value,
    b: Value,
    steps: Value,
    starts: Value,
    sums: Value,
) -> Value:
    """sums [2, 16, 16] int32 = starts + A · Bᵀ, of 1 to MAX_DOT_ROWS rows with 32 outputs, in two halves.

    a       int8, rows `stride` bytes apart
    b       [steps, 2, 16, 16, 4] uint8: place q of a half holds inputs 4q..4q+3 of its 16 outputs
    starts  [rows] int32, what each row's sums begin with
    """

    def generate(context: Value, builder: Value, signature: Value, values: Value) -> Value:
        done = builder.append_basic_block("dotted")
        switch = builder.switch(values[0], done)
        for count in range(1, MAX_DOT_ROWS + 1):
            case = builder.append_basic_block(f"dot{count}")
            switch.add_case(_I64(count), case)
            builder.position_at_end(case)
            _dot_block(builder, count, *values[1:])
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


def _dot_block(
    builder: Value, rows: int, a: Value, stride: Value, b: Value, steps: Value, starts: Value, sums: Value
) -> None:
    """`dot_rows` for a number of rows known to the compiler, so that all sums stay in registers."""
    registers = []
    for row in range(rows):
        start = _splat(builder, _load(builder, builder.add(starts, _I64(row * 4)), _I32))
        registers.append([cgutils.alloca_once_value(builder, start) for _ in range(2)])
    row_addresses = [builder.add(a, builder.mul(stride, _I64(row))) for row in range(rows)]
    with cgutils.for_range(builder, steps) as step:
        weights = builder.add(b, builder.mul(step.index, _I64(2 * _HALF)))
        inputs = builder.mul(step.index, _I64(_REGISTER))
        with cgutils.for_range(builder, _I64(_LANES // _UNROLLED)) as part:
            place = builder.add(weights, builder.mul(part.index, _I64(_UNROLLED * _REGISTER)))
            begin = builder.add(inputs, builder.mul(part.index, _I64(_UNROLLED * _QUAD)))
            for quad in range(_UNROLLED):
                _dot_quad(builder, registers, row_addresses, place, begin, quad)
    for row in range(rows):
        for half in range(2):
            target = builder.add(sums, _I64(half * _HALF + row * _REGISTER))
            pointer = builder.inttoptr(target, _INTS.as_pointer())
            builder.store(builder.load(registers[row][half]), pointer, align=4)


def _dot_quad(
    builder: Value, registers: list[list[Value]], rows: list[Value], place: Value, begin: Value, quad: int
) -> None:
    """Four inputs of each row with those of 32 outputs."""
    outputs = [
        _load(builder, builder.add(place, _I64(half * _HALF + quad * _REGISTER)), _INTS) for half in range(2)
    ]
    for row, address in enumerate(rows):
        four = _load(builder, builder.add(builder.add(address, begin), _I64(quad * _QUAD)), _I32)
        inputs = _splat(builder, four)
        for half in range(2):
            register = registers[row][half]
            builder.store(_dot(builder, builder.load(register), outputs[half], inputs), register)


def _dot(builder: Value, sums: Value, unsigned: Value, signed: Value) -> Value:
    """sums + the four products of each lane; nothing saturates."""
    signature = ir.FunctionType(_INTS, [_INTS, _INTS, _INTS])
    name = "llvm.x86.avx512.vpdpbusd.512"
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, [sums, unsigned, signed])


def _load(builder: Value, address: Value, of: Value) -> Value:
    return builder.load(builder.inttoptr(address, of.as_pointer()), align=1)


def _splat(builder: Value, number: Value) -> Value:
    one = builder.insert_element(ir.Constant(_INTS, ir.Undefined), number, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(_INTS, [0] * _LANES))
