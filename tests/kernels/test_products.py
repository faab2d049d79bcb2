"""The NF4 and int8 products against arithmetic in fp64, over row counts, with outputs poisoned by NaN.

The Triton kernels run here wherever there is no GPU, interpreted; those in CUDA C++ are marked `gpu`,
and test_products_on_cpu.py executes them without one.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraplex_server.errors import KernelError
from loraplex_server.kernels.int8_matmul import Int8Weight, int8_matmul
from loraplex_server.kernels.int8_triton import int8_matmul_triton
from loraplex_server.kernels.nf4_matmul import nf4_dequantize, nf4_matmul
from loraplex_server.kernels.nf4_triton import nf4_matmul_triton
from loraplex_server.kernels.nf4_weight import Nf4Weight
from loraplex_server.kernels.nvrtc import compile_cubin
from loraplex_server.kernels.product_choice import (
    INT8_MAX_ROWS,
    NF4_MAX_ROWS,
    ROW_BUCKETS,
    int8_plan,
    nf4_plan,
    planned_rows,
)
from loraplex_server.kernels.product_plan import ProductPlan
from loraplex_server.kernels.quantize import QuantizedRows, quantize_rows_reference

REAL_SHAPES = [  # outputs, inputs
    (4096, 4096),
    (28672, 4096),
    (4608, 3584),
    (3584, 18944),
    (960, 576),
    (3072, 576),
    (576, 1536),
    (1000, 192),
    (8, 64),
]


def nf4_weight(outputs: int, inputs: int, device: torch.device) -> Nf4Weight:
    codes = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device)
    return Nf4Weight.from_codes(codes, torch.rand(outputs, inputs // 64, device=device) * 0.02 + 0.002)


def rows_of(count: int, inputs: int, device: torch.device) -> Tensor:
    return torch.randn(count, inputs, dtype=torch.bfloat16, device=device)


def poisoned(rows: int, outputs: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.full((rows, outputs), torch.nan, dtype=dtype, device=device)


def int8_case(
    rows: int, outputs: int, inputs: int, device: torch.device
) -> tuple[QuantizedRows, Int8Weight, Tensor]:
    """Operands and their product in fp64."""
    x = QuantizedRows(*quantize_rows_reference(rows_of(rows, inputs, device)))
    weight = Int8Weight.from_dense(torch.randn(outputs, inputs, device=device))
    sums = x.values.double() @ weight.values.double().t()
    return x, weight, sums * x.scales.double().view(-1, 1) * weight.scales.double()


def tolerance(out: Tensor) -> float:
    """A single bf16 is off by up to 2⁻⁸; over many the mean is 1.66e-3, to which the fast modes add up to 1.5e-3."""
    return 4e-3 if out.numel() >= 1000 else 5e-3


def exact_tolerance(out: Tensor) -> float:
    """That of one rounding to bf16, which the fast modes do not keep."""
    return 1.85e-3 if out.numel() >= 1000 else 5e-3


def error(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("rows", [1, 3, 8, 17, 70])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 192), (40, 128), (24, 64)])
def test_the_nf4_product_in_triton_is_the_product_with_bitsandbytes_weights(
    rows: int, outputs: int, inputs: int, device: torch.device
) -> None:
    weight, x = nf4_weight(outputs, inputs, device), rows_of(rows, inputs, device)
    bias = torch.randn(outputs, dtype=torch.bfloat16, device=device)
    out = nf4_matmul_triton(x, weight, poisoned(rows, outputs, device), bias)
    assert error(out, x.double() @ weight.dequantized().double().t() + bias.double()) < tolerance(out)


@pytest.mark.parametrize("rows", [1, 5, 16, 33, 130])
@pytest.mark.parametrize(("outputs", "inputs"), [(72, 192), (16, 576)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_int8_product_in_triton_is_the_product_of_the_integers(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, weight, expected = int8_case(rows, outputs, inputs, device)
    bias = torch.randn(outputs, dtype=dtype, device=device)
    out = poisoned(rows, outputs, device, dtype)
    int8_matmul_triton(
        x.values, x.scales.view(-1), weight.values, weight.scales, out, bias, (16, 32, 128, 4, 3)
    )
    assert error(out, expected + bias.double()) < (1e-6 if dtype == torch.float32 else tolerance(out))


@pytest.mark.gpu
def test_an_int8_product_to_fp32_is_exact_on_a_device(device: torch.device) -> None:
    for rows in (1, 30, 200):
        x, weight, expected = int8_case(rows, 4096, 576, device)
        out = int8_matmul(x, weight, poisoned(rows, 4096, device, torch.float32))
        assert error(out, expected) < 1e-6, rows


def test_on_a_cpu_both_products_are_plain_torch() -> None:
    cpu = torch.device("cpu")
    weight, x = nf4_weight(48, 128, cpu), rows_of(5, 128, cpu)
    assert error(nf4_matmul(x, weight), x.double() @ weight.dequantized().double().t()) < 5e-3
    rows, int8, expected = int8_case(5, 48, 128, cpu)
    assert error(int8_matmul(rows, int8, poisoned(5, 48, cpu)), expected) < 5e-3


def test_no_rows_give_no_rows() -> None:
    weight = nf4_weight(48, 128, torch.device("cpu"))
    assert nf4_matmul(torch.empty(0, 128, dtype=torch.bfloat16), weight).shape == (0, 48)


def test_operands_that_do_not_fit_are_refused() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="does not fit a weight of 128 inputs"):
        nf4_matmul(rows_of(2, 64, cpu), nf4_weight(48, 128, cpu))
    x, weight, _ = int8_case(2, 48, 128, cpu)
    with pytest.raises(ValueError, match="do not fit"):
        int8_matmul(x, weight, poisoned(2, 40, cpu))


@pytest.mark.parametrize("outputs", [8, 576, 960, 3584, 4096, 6144, 14336, 28672, 37888, 128256])
def test_every_plan_fits_a_block_of_hopper(outputs: int) -> None:
    for rows in range(1, NF4_MAX_ROWS + 1):
        int8_plans = [int8_plan(outputs, inputs, rows) for inputs in (576, 14336)]
        for plan in (nf4_plan(outputs, rows, False), *int8_plans):
            assert plan.nt * 8 >= min(rows, 128)
            assert plan.threads <= 1024
            assert plan.shared_bytes + plan.static_bytes <= 227 * 1024
            groups = plan.grid(outputs, rows)[0] // plan.grid(outputs, 1)[0]
            assert plan.grid(outputs, 1)[0] * plan.outputs >= outputs
            assert groups * plan.rows_held >= rows


@pytest.mark.parametrize("outputs", [576, 4096, 6144, 28672])
def test_every_plan_is_compiled_before_it_is_wanted(outputs: int) -> None:
    compiled = {nf4_plan(outputs, rows, False) for rows in planned_rows(NF4_MAX_ROWS)}
    assert {nf4_plan(outputs, rows, False) for rows in range(1, NF4_MAX_ROWS + 1)} == compiled
    for inputs in (576, 4096, 14336):
        compiled = {int8_plan(outputs, inputs, rows) for rows in planned_rows(INT8_MAX_ROWS)}
        assert {int8_plan(outputs, inputs, rows) for rows in range(1, INT8_MAX_ROWS + 1)} == compiled


def test_many_rows_are_cut_so_that_the_last_wave_of_blocks_is_nearly_full() -> None:
    for outputs in (4096, 6144, 28672):
        for rows in planned_rows(NF4_MAX_ROWS)[len(ROW_BUCKETS) :]:
            plan = nf4_plan(outputs, rows, False)
            columns, parts = plan.grid(outputs, rows)
            waves = columns * parts / 132
            assert waves / math.ceil(waves) > 0.7, (outputs, rows)


def test_of_narrow_int8_weights_long_ones_alone_take_the_wide_kernel_from_17_rows_on() -> None:
    for rows in (17, 32):
        assert int8_plan(4096, 14336, rows).is_wide
        for outputs, inputs in ((4096, 4096), (3072, 576), (576, 14336)):
            assert not int8_plan(outputs, inputs, rows).is_wide
    assert int8_plan(4096, 14336, 16) == int8_plan(4096, 4096, 16)


@pytest.mark.parametrize("outputs", [6144, 14336, 28672])
def test_all_blocks_of_a_wide_int8_weight_start_at_once_at_2_to_32_rows(outputs: int) -> None:
    multiprocessors = 132
    for rows in (2, 8, 16, 32):
        columns, parts = int8_plan(outputs, 4096, rows).grid(outputs, rows)
        assert columns * parts <= multiprocessors


@pytest.mark.parametrize("outputs", [576, 4096, 6144, 8192, 28672])
def test_the_order_of_summation_is_the_same_at_all_row_counts_of_a_range(outputs: int) -> None:
    for low, high in ((1, 16), (17, 32), (33, 64), (65, 96), (97, 128)):
        plans = [nf4_plan(outputs, rows, False) for rows in range(low, high + 1)]
        assert len({(plan.source, plan.parts, plan.is_exact) for plan in plans}) == 1


@pytest.mark.parametrize(
    "plan",
    [
        nf4_plan(4096, 8, True),
        nf4_plan(4096, 64, False),
        nf4_plan(28672, 192, False),
        nf4_plan(28672, 256, True),
        int8_plan(6144, 4096, 192),
        int8_plan(4096, 4096, 1),
        int8_plan(4096, 4096, 128),
    ],
    ids=lambda plan: plan.source,
)
def test_the_sources_compile_for_hopper_without_a_gpu_or_a_toolkit(plan: ProductPlan, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.cu13", reason="needs NVRTC")
    cubin = compile_cubin(plan.source, plan.defines, "sm_90a", tmp_path)
    assert plan.function.encode() in cubin
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [cubin]


def test_a_source_that_does_not_compile_is_reported_with_the_compiler_s_words() -> None:
    pytest.importorskip("nvidia.cu13", reason="needs NVRTC")
    with pytest.raises(KernelError, match="WN"):
        compile_cubin("nf4.cu", {"NT": 1}, "sm_90a")


@pytest.mark.gpu
@pytest.mark.parametrize(("outputs", "inputs"), REAL_SHAPES)
def test_the_nf4_product_is_right_at_every_row_bucket(
    outputs: int, inputs: int, device: torch.device
) -> None:
    weight = nf4_weight(outputs, inputs, device)
    bias = torch.randn(outputs, dtype=torch.bfloat16, device=device)
    exact, rounded = weight.unrounded(), weight.dequantized().double()
    assert torch.equal(nf4_dequantize(weight, poisoned(outputs, inputs, device)), weight.dequantized())
    for rows in [1, 2, 7, 8, 9, 16, 31, 32, 33, 64, 65, 96, 97, 127, 128, 129, 200, 257, 384, 500, 768, 769]:
        x = rows_of(rows, inputs, device)
        out = nf4_matmul(x, weight, poisoned(rows, outputs, device), bias)
        assert error(out, x.double() @ exact.t() + bias.double()) < tolerance(out), rows
        out = nf4_matmul(x, weight, poisoned(rows, outputs, device), exact=True)
        assert error(out, x.double() @ rounded.t()) < exact_tolerance(out), rows


@pytest.mark.gpu
@pytest.mark.parametrize(("outputs", "inputs"), [(4096, 4096), (28672, 4096), (960, 576)])
def test_a_row_s_nf4_product_has_the_same_bits_alone_and_among_others(
    outputs: int, inputs: int, device: torch.device
) -> None:
    weight, x = nf4_weight(outputs, inputs, device), rows_of(128, inputs, device)
    for low, high in ((1, 16), (17, 32), (33, 64), (65, 96), (97, 128)):
        expected = nf4_matmul(x[:high], weight)
        for rows in {low, min(low + 4, high), (low + high) // 2}:
            assert torch.equal(nf4_matmul(x[:rows], weight), expected[:rows]), rows
            assert torch.equal(nf4_matmul(x[high - rows : high], weight), expected[high - rows :]), rows


@pytest.mark.gpu
@pytest.mark.parametrize(("outputs", "inputs"), [*REAL_SHAPES, (128256, 4096)])
def test_the_int8_product_is_right_at_every_row_bucket(
    outputs: int, inputs: int, device: torch.device
) -> None:
    for rows in [1, 7, 8, 16, 31, 32, 64, 65, 96, 128, 130, 192, 256, 300, 400, 512, 513]:
        x, weight, expected = int8_case(rows, outputs, inputs, device)
        bias = torch.randn(outputs, dtype=torch.bfloat16, device=device)
        out = int8_matmul(x, weight, poisoned(rows, outputs, device), bias)
        assert error(out, expected + bias.double()) < tolerance(out), rows


@pytest.mark.gpu
def test_products_that_overlap_in_a_graph_give_what_they_give_one_by_one(device: torch.device) -> None:
    first, second = nf4_weight(4096, 4096, device), nf4_weight(4096, 4096, device)
    x = rows_of(8, 4096, device)
    middle, out = poisoned(8, 4096, device), poisoned(8, 4096, device)
    expected = nf4_matmul(nf4_matmul(x, first), second)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            nf4_matmul(x, first, middle)
            nf4_matmul(middle, second, out)
    for _ in range(5):
        middle.fill_(torch.nan)
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, expected)
