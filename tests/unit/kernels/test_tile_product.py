"""The int8 product in AMX tiles: packing is reversible, the product exact between the two scalings."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from loraplex_server.kernels.cpu.int8_product import pack_weight, unpack_rows
from loraplex_server.kernels.cpu.tile_product import TileProduct
from loraplex_server.kernels.cpu.tiles import has_tiles
from loraplex_server.kernels.layer_ops import TorchOps

needs_tiles = pytest.mark.skipif(not has_tiles(), reason="needs a CPU with int8 tiles")


@pytest.mark.parametrize("shape", [(1, 1), (70, 100), (96, 64), (33, 129)])
def test_a_packed_weight_gives_its_rows_back(shape: tuple[int, int]) -> None:
    weight = torch.randint(-128, 128, shape, dtype=torch.int8)
    index = torch.randint(0, shape[0], (9,))

    assert torch.equal(unpack_rows(pack_weight(weight), index, shape[1]), weight[index])


@needs_tiles
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("shape", [(1, 1), (70, 100), (64, 128), (576, 1536)])
def test_the_product_equals_that_of_the_integers_scaled(rows: int, shape: tuple[int, int]) -> None:
    weight, scale, bias = (
        torch.randint(-127, 128, shape, dtype=torch.int8),
        torch.rand(shape[0]),
        torch.randn(shape[0]),
    )
    x = torch.randn(rows, shape[1])
    values, row_scales = TorchOps().quantize_rows(x)
    expected = (values.double() @ weight.double().t()) * scale * row_scales

    product = TileProduct(weight, scale)

    torch.testing.assert_close(product(x, bias).double(), expected + bias, rtol=1e-5, atol=1e-4)


@needs_tiles
def test_a_row_does_not_depend_on_the_others_bit_for_bit() -> None:
    product = TileProduct(torch.randint(-127, 128, (96, 200), dtype=torch.int8), torch.rand(96))
    x = torch.randn(70, 200)
    together = product(x, None)

    for row in (0, 15, 16, 33, 69):
        assert torch.equal(product(x[row : row + 1].clone(), None), together[row : row + 1])
