"""The int8 products in AMX tiles and with VNNI: packing is reversible, the product exact between the two scalings."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from loraplex_server.kernels.cpu.int8_product import pack_weight, unpack_rows
from loraplex_server.kernels.cpu.tile_product import TileProduct, VnniProduct
from loraplex_server.kernels.cpu.tiles import has_tiles
from loraplex_server.kernels.cpu.vnni import has_vnni
from loraplex_server.kernels.cpu.vnni_product import flip_sign
from loraplex_server.kernels.layer_ops import TorchOps


@pytest.fixture(
    params=[
        pytest.param(
            TileProduct, marks=pytest.mark.skipif(not has_tiles(), reason="needs a CPU with int8 tiles")
        ),
        pytest.param(
            VnniProduct, marks=pytest.mark.skipif(not has_vnni(), reason="needs a CPU with 512-bit VNNI")
        ),
    ]
)
def product_type(request: pytest.FixtureRequest) -> type[TileProduct]:
    """Each product that this CPU has instructions for."""
    chosen: type[TileProduct] = request.param
    return chosen


@pytest.mark.parametrize("shape", [(1, 1), (70, 100), (96, 64), (33, 129)])
def test_a_packed_weight_gives_its_rows_back(shape: tuple[int, int]) -> None:
    weight = torch.randint(-128, 128, shape, dtype=torch.int8)
    index = torch.randint(0, shape[0], (9,))

    assert torch.equal(unpack_rows(pack_weight(weight), index, shape[1]), weight[index])


def test_flipping_the_sign_bit_adds_128_and_is_its_own_inverse() -> None:
    weight = torch.arange(-128, 128).to(torch.int8)

    assert torch.equal(flip_sign(weight).view(torch.uint8), torch.arange(256, dtype=torch.uint8))
    assert torch.equal(flip_sign(flip_sign(weight)), weight)


@pytest.mark.parametrize("shape", [(1, 1), (31, 3), (70, 100), (64, 128), (33, 65), (576, 1536)])
def test_the_sums_of_any_number_of_rows_are_those_of_the_integers_bit_for_bit(
    product_type: type[TileProduct], shape: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
    x = torch.randint(-127, 128, (150, shape[1]), generator=generator).float()
    x[:, 0] = 127.0  # so that each row's scale is 1
    exact = (x.double() @ weight.double().t()).float()

    product = product_type(weight, torch.ones(shape[0]))

    assert torch.equal(product.weight(), weight)
    for rows in (*range(1, 37), 48, 64, 100, 150):
        assert torch.equal(product(x[:rows], None), exact[:rows]), rows


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_largest_numbers_of_a_long_row_do_not_saturate(
    product_type: type[TileProduct], sign: float
) -> None:
    """127 · 255 in 70000 places passes int32 before the offset is taken away again; 127 · 127 does not."""
    weight = torch.full((40, 70000), 127, dtype=torch.int8)
    x = torch.full((3, 70000), 127.0 * sign)

    y = product_type(weight, torch.ones(40))(x, None)

    assert torch.equal(y, torch.full((3, 40), sign * 127.0 * 127.0 * 70000.0))


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("shape", [(1, 1), (70, 100), (64, 128), (576, 1536)])
def test_the_product_equals_that_of_the_integers_scaled(
    product_type: type[TileProduct], rows: int, shape: tuple[int, int]
) -> None:
    weight, scale, bias = (
        torch.randint(-127, 128, shape, dtype=torch.int8),
        torch.rand(shape[0]),
        torch.randn(shape[0]),
    )
    x = torch.randn(rows, shape[1])
    values, row_scales = TorchOps().quantize_rows(x)
    expected = (values.double() @ weight.double().t()) * scale * row_scales

    product = product_type(weight, scale)

    torch.testing.assert_close(product(x, bias).double(), expected + bias, rtol=1e-5, atol=1e-4)


def test_a_row_does_not_depend_on_the_others_bit_for_bit(product_type: type[TileProduct]) -> None:
    product = product_type(torch.randint(-127, 128, (96, 200), dtype=torch.int8), torch.rand(96))
    x = torch.randn(70, 200)
    together = product(x, None)

    for row in (0, 15, 16, 33, 69):
        assert torch.equal(product(x[row : row + 1].clone(), None), together[row : row + 1])
