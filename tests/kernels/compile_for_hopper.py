"""Compiles every kernel for compute capability 9.0, which needs no GPU. A script: the interpreter must be off.

The launchers run on tensors of the CPU; in place of a launch, the kernel that it asks for is compiled.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from loraplex_server.kernels import (
    decode_attention,
    embedding,
    int8_triton,
    logit_changes,
    lora_expand,
    lora_shrink,
    nf4_triton,
    norm,
    pinned_read,
    prefill_attention,
    quantize,
    rope,
    sampling,
    swiglu,
)
from loraplex_server.kernels.layer_ops import HeadNorms
from loraplex_server.kernels.lora_scratch import LoraScratch
from loraplex_server.kernels.lora_tables import (
    LARGE_TILE_ROWS,
    SMALL_TILE_ROWS,
    LoraTables,
    ProjectionShape,
)
from loraplex_server.kernels.nf4_weight import Nf4Weight
from loraplex_server.kernels.paged_attention import AttentionShape

ROWS, HIDDEN = 32, 512
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 128
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
DIVISIBLE = [["tt.divisibility", 16]]


def compile_instead(self: Any, *args: Any, grid: Any, warmup: bool = False, **keywords: Any) -> None:
    """In place of JITFunction.run."""
    values = dict(zip(self.arg_names, args, strict=False))
    values |= {name: value for name, value in keywords.items() if name in self.arg_names}
    options = {name: value for name, value in keywords.items() if name not in self.arg_names}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(self.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None:
            constants[(index,)] = value
            signature[parameter.name] = "constexpr"
        elif isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(index,)] = DIVISIBLE
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[(index,)] = DIVISIBLE
    source = ASTSource(self, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
    print(self.__name__, flush=True)  # noqa: T201


def b16(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16)


def i32(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int32)


def launch_lora() -> None:
    width = HEADS * HEAD_DIM
    tables = LoraTables(b16(64), i32(2, 2, 4, 8), i32(2, 2, 4, 8))
    qkv = ProjectionShape(0, HIDDEN, (width, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM))
    for tile_rows in (SMALL_TILE_ROWS, LARGE_TILE_ROWS):
        tiles, shrunk = i32(20, 4), b16(ROWS, 96)
        scratch = LoraScratch.allocate(4 * shrunk.numel(), 160, 1, torch.device("cpu"))
        lora_shrink.lora_shrink(b16(ROWS, HIDDEN), shrunk, scratch, tables, tiles, 1, qkv, tile_rows)
        for adds in (True, False):
            y = b16(ROWS, sum(qkv.widths))
            lora_expand.lora_expand(shrunk, y, tables, tiles, 1, qkv, tile_rows, adds=adds)


def launch_rope_and_swiglu() -> None:
    table, index = torch.empty(64, HEAD_DIM // 2), torch.zeros(ROWS, dtype=torch.int64)
    norms = HeadNorms(b16(HEAD_DIM), b16(HEAD_DIM), 1e-6)
    qkv, cache = b16(ROWS, (HEADS + 2 * KV_HEADS) * HEAD_DIM), b16(8, 16, 2 * KV_HEADS * HEAD_DIM)
    gate_up = b16(ROWS, 2048)
    for lora, gate_up_lora in ((None, None), (qkv, gate_up)):
        rope.rope_and_write(qkv, table, table, index, index, cache, HEADS, KV_HEADS, norms, lora)
        swiglu.swiglu(gate_up, b16(ROWS, 1024), None, gate_up_lora)


def launch_attention() -> None:
    cache, tables = b16(8, 16, 2 * KV_HEADS * HEAD_DIM), i32(ROWS, 64)
    queries, out = b16(ROWS, HEADS, HEAD_DIM), b16(ROWS, HEADS * HEAD_DIM)
    scratch = torch.empty(ROWS * HEADS * 4 * HEAD_DIM)
    for window in (None, 100):
        shape = AttentionShape(HEADS, KV_HEADS, HEAD_DIM, window)
        for bound in (256, 1024):
            decode_attention.decode_attention(
                queries, cache, tables, i32(ROWS), bound, out, scratch, scratch, shape
            )
        prefill_attention.prefill_attention(queries, cache, tables, i32(4, 4), out, shape)


def launch_row_kernels() -> None:
    hidden, weight = b16(ROWS, HIDDEN), b16(HIDDEN)
    integers = quantize.QuantizedRows(torch.empty(ROWS, HIDDEN, dtype=torch.int8), torch.empty(ROWS))
    norm.rms_norm(hidden, hidden, weight, 1e-5, hidden, integers)
    quantize.quantize_rows(hidden, integers)
    swiglu.swiglu(b16(ROWS, 2 * HIDDEN), hidden, integers)
    embedding.embed(torch.zeros(ROWS, dtype=torch.int64), b16(100, HIDDEN), None, hidden)
    pinned_read.read_pinned(i32(4096), i32(4096))


def launch_sampling() -> None:
    scratch = sampling.SampleScratch.allocate(ROWS, 9000, torch.device("cpu"))
    out, values = torch.empty(ROWS, dtype=torch.int64), torch.empty(ROWS)
    for parameters in (None, sampling.RowSampling(values, i32(ROWS), values, values, out, out)):
        sampling.sample(torch.empty(ROWS, 9000), parameters, scratch, out)


def launch_logit_changes() -> None:
    column, numbers, table = i32(128), torch.empty(128), i32(4, 9000)
    logits = torch.empty(ROWS, 9000)
    logit_changes.add_to_logits(logits, column, column, numbers)
    logit_changes.write_words(table, column, column, column)
    logit_changes.penalize(logits, table, column, column, numbers, numbers, numbers, ROWS)
    logit_changes.count_sampled(table, column, column, torch.empty(ROWS, dtype=torch.int64))


def launch_triton_products() -> None:
    values, scales = torch.empty(ROWS, HIDDEN, dtype=torch.int8), torch.empty(ROWS)
    for dtype in (torch.bfloat16, torch.float32):
        out = torch.empty(ROWS, ROWS, dtype=dtype)
        for bias in (None, out[0]):
            int8_triton.int8_matmul_triton(values, scales, values, scales, out, bias, (32, 64, 256, 4, 3))
    codes = torch.zeros(ROWS, HIDDEN // 2, dtype=torch.uint8)
    nf4 = Nf4Weight.from_codes(codes, torch.ones(ROWS, HIDDEN // 64))
    for bias in (None, b16(ROWS)):
        nf4_triton.nf4_matmul_triton(b16(ROWS, HIDDEN), nf4, b16(ROWS, ROWS), bias)


def main() -> None:
    JITFunction.run = compile_instead
    for module in list(sys.modules.values()):
        if module.__name__.startswith("loraplex_server.kernels.") and hasattr(module, "overlaps_launches"):
            vars(module)["overlaps_launches"] = lambda tensor: True
    launch_lora()
    launch_rope_and_swiglu()
    launch_attention()
    launch_row_kernels()
    launch_sampling()
    launch_logit_changes()
    launch_triton_products()


if __name__ == "__main__":
    main()
