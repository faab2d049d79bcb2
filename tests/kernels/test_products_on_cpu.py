"""The products in CUDA C++ and their launchers, executed on a CPU, against arithmetic in fp64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraplex_server.kernels import int8_matmul, nf4_matmul
from loraplex_server.kernels.nvrtc import cuda_source
from loraplex_server.kernels.product_choice import int8_plan, nf4_plan
from loraplex_server.kernels.product_plan import ProductPlan
from loraplex_server.kernels.product_waves import INT8_CUTS, NF4_CUTS, Cut
from tests.kernels.cuda_on_cpu.emulation import COMPILER, EmulatedKernel, emulated_map
from tests.kernels.test_products import (
    error,
    exact_tolerance,
    int8_case,
    nf4_weight,
    poisoned,
    rows_of,
    tolerance,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

CPU = torch.device("cpu")
TILES = 16 * 132  # outputs that plans are made for, as many times; those multiplied here are fewer
NARROW = TILES * 2


@pytest.fixture(scope="module")
def kernel_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ProductPlan], EmulatedKernel]:
    """As `product_kernel`, compiled once."""
    folder: Path = tmp_path_factory.mktemp("kernels")
    kernels: dict[ProductPlan, EmulatedKernel] = {}

    def compiled(plan: ProductPlan) -> EmulatedKernel:
        if plan not in kernels:
            kernels[plan] = EmulatedKernel(
                cuda_source(plan.source),
                plan.function,
                plan.defines,
                plan.threads,
                folder,
                plan.shared_bytes,
            )
        return kernels[plan]

    return compiled


@pytest.fixture(autouse=True)
def emulated(kernel_of: Callable[[ProductPlan], EmulatedKernel], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (nf4_matmul, int8_matmul):
        monkeypatch.setattr(module, "product_kernel", lambda plan, device: kernel_of(plan))
        monkeypatch.setattr(module, "tensor_map", emulated_map)


@pytest.mark.parametrize(
    ("rows", "is_exact"),
    [(1, False), (5, True), (16, False), (21, False), (40, False), (40, True), (150, False), (150, True)],
)
@pytest.mark.parametrize("planned_for", [NARROW, TILES * 3, TILES * 5, TILES * 9])
def test_the_nf4_product_is_the_product_with_bitsandbytes_weights(
    planned_for: int, rows: int, is_exact: bool
) -> None:
    weight, x = nf4_weight(72, 832, CPU), rows_of(rows, 832, CPU)
    bias, out = torch.randn(72, dtype=torch.bfloat16), poisoned(rows, 72, CPU)

    nf4_matmul.launch_nf4(nf4_plan(planned_for, rows, is_exact), x, weight, out, bias)

    allowed = exact_tolerance(out) if is_exact else tolerance(out)
    assert error(out, x.double() @ weight.dequantized().double().t() + bias.double()) < allowed


@pytest.mark.parametrize("rows", [1, 13, 30, 40, 150])
@pytest.mark.parametrize("planned_for", [NARROW, TILES * 3, TILES * 5, TILES * 9])
def test_the_int8_product_is_the_product_of_the_integers(planned_for: int, rows: int) -> None:
    x, weight, expected = int8_case(rows, 72, 832, CPU)
    bias, out = torch.randn(72, dtype=torch.bfloat16), poisoned(rows, 72, CPU)

    int8_matmul.launch_int8(int8_plan(planned_for, 4096, rows), x, weight, out, bias)

    assert error(out, expected + bias.double()) < tolerance(out)


def _name(cut: Cut) -> str:
    plan = cut.plan
    return f"{plan.source} {plan.rows_held} rows, {plan.outputs} outputs, {plan.parts} parts"


@pytest.mark.parametrize("cut", sorted(set(NF4_CUTS) | set(INT8_CUTS), key=str), ids=_name)
def test_each_cut_of_many_rows_multiplies_all_groups_of_them(cut: Cut) -> None:
    rows = cut.plan.rows_held + 9
    if cut.plan.is_int8:
        x, int8_weight, expected = int8_case(rows, 136, 320, CPU)
        int8_matmul.launch_int8(cut.plan, x, int8_weight, out := poisoned(rows, 136, CPU), None)
    else:
        weight, dense = nf4_weight(136, 320, CPU), rows_of(rows, 320, CPU)
        expected = dense.double() @ weight.dequantized().double().t()
        nf4_matmul.launch_nf4(cut.plan, dense, weight, out := poisoned(rows, 136, CPU), None)

    assert error(out, expected) < tolerance(out)


def test_a_row_has_the_same_bits_at_every_number_of_rows_up_to_16() -> None:
    weight, x = nf4_weight(40, 448, CPU), rows_of(16, 448, CPU)
    outs = {rows: poisoned(rows, 40, CPU) for rows in (1, 3, 16)}
    for rows, out in outs.items():
        nf4_matmul.launch_nf4(nf4_plan(NARROW, rows, False), x[:rows], weight, out, None)

    assert torch.equal(outs[1], outs[16][:1])
    assert torch.equal(outs[3], outs[16][:3])


def test_dequantized_weights_are_those_of_bitsandbytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = EmulatedKernel(cuda_source("nf4_dequantize.cu"), "nf4_dequantize", {}, 256, tmp_path)
    monkeypatch.setattr(nf4_matmul, "has_cuda_products", lambda device: True)
    monkeypatch.setattr(nf4_matmul, "_dequantize_kernel", lambda device: kernel)
    weight, out = nf4_weight(72, 192, CPU), torch.full((72, 192), torch.nan, dtype=torch.bfloat16)

    nf4_matmul.nf4_dequantize(weight, out)

    assert torch.equal(out, weight.dequantized())
