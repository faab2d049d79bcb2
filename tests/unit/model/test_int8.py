"""The int8 linear layer: exact integer arithmetic between two roundings, whatever layout holds the weight."""

from __future__ import annotations

import pytest
import torch

from loraplex_server.model import int8
from loraplex_server.model.int8 import (
    Int8Linear,
    _Candidate,
    _PackedProduct,
    _RowMajorProduct,
    fast_int8_product,
    quantize_rows,
)

LAYOUTS = {
    "AMX tiles": None,
    "VNNI": None,
    "packed": _Candidate("packed", _PackedProduct, gives_rows=False),
    "row-major": _Candidate("row-major", _RowMajorProduct),
}


@pytest.fixture(params=[*LAYOUTS, "float"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each layout in turn, as if it were the one that this CPU calls for."""
    name = str(request.param)
    ours = {candidate.name: candidate for candidate in int8._kernel_candidates()}
    candidate = ours.get(name) or LAYOUTS.get(name)
    if candidate is None and name != "float":
        pytest.skip(f"this CPU does not take {name}")
    monkeypatch.setattr(int8, "_candidates", lambda: () if candidate is None else (candidate,))
    return name


def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Quantize both sides, multiply integers, scale."""
    (a, row_scale), (w, scale) = quantize_rows(x), quantize_rows(weight)
    return (a.long() @ w.long().t()).float() * scale.view(1, -1) * row_scale


@pytest.mark.parametrize("shape", [(1, 64, 32), (5, 33, 7), (17, 576, 960)])
def test_the_product_is_that_of_the_integers_scaled(layout: str, shape: tuple[int, int, int]) -> None:
    rows, in_features, out_features = shape
    x, weight = torch.randn(rows, in_features), torch.randn(out_features, in_features)

    y = Int8Linear(weight)(x)

    torch.testing.assert_close(y, reference(x, weight), rtol=1e-6, atol=1e-6)


def test_values_that_overflow_16_bits_in_pairs_are_multiplied_right(layout: str) -> None:
    weight = torch.full((64, 256), 3.0)
    x = torch.full((3, 256), -2.0)

    y = Int8Linear(weight)(x)

    torch.testing.assert_close(y, torch.full((3, 64), -1536.0), rtol=1e-5, atol=0)


def test_the_weight_can_be_read_back(layout: str) -> None:
    weight = torch.randn(48, 32)
    quantized, scale = quantize_rows(weight)

    assert torch.equal(Int8Linear(weight).dequantized(), quantized.float() * scale)


def test_rows_of_a_table_are_rows_of_its_weight(layout: str) -> None:
    table = Int8Linear(torch.randn(20, 16), is_table=True)

    assert torch.equal(table.rows(torch.tensor([3, 3, 19])), table.dequantized()[[3, 3, 19]])


def test_a_row_of_zeros_gives_the_bias_alone(layout: str) -> None:
    bias = torch.randn(8)

    y = Int8Linear(torch.randn(8, 16), bias)(torch.zeros(2, 16))

    assert torch.equal(y, bias.expand(2, 8))


def test_a_row_does_not_depend_on_the_others(layout: str) -> None:
    linear = Int8Linear(torch.randn(96, 64))
    x = torch.randn(40, 64)

    assert torch.equal(linear(x)[7:8], linear(x[7:8].contiguous()))


@pytest.mark.parametrize("in_features", [1, 1023, 1024, 1025, 3000])
def test_without_int8_units_the_sums_are_still_those_of_the_integers(in_features: int) -> None:
    weight = torch.randint(-128, 128, (7, in_features), dtype=torch.int8)
    values = torch.randint(-127, 128, (5, in_features), dtype=torch.int8)
    product = int8._FloatProduct(weight, torch.ones(7))

    sums = product.multiply(values)

    assert torch.equal(sums, (values.double() @ weight.double().t()).float())


def test_what_a_cpu_multiplies_slowly_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's linear layer exists on every CPU and is its reference code on those without AMX."""
    monkeypatch.setattr(int8, "_kernel_candidates", list)

    def taken(**features: bool) -> list[object]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
        int8._candidates.cache_clear()
        return [candidate.product for candidate in int8._candidates()]

    assert taken(avx2=True) == []
    assert taken(avx512_vnni=True) == [_RowMajorProduct]
    assert taken(avx512_vnni=True, amx_int8=True) == [_PackedProduct, _RowMajorProduct]
    int8._candidates.cache_clear()


def test_a_cpu_without_int8_units_has_no_fast_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_candidates", lambda: ())

    assert fast_int8_product() is None
