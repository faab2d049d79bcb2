"""NF4 weights keep bitsandbytes' bits through the repacking, in the places where the tensor cores look for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes import functional
from torch import Tensor

from loraplex_server.kernels.nf4_weight import BLOCK_SIZE, Nf4Weight


def quantized(*rows: int, columns: int) -> list[tuple[Tensor, Any]]:
    return [
        functional.quantize_4bit(
            torch.randn(count, columns, dtype=torch.bfloat16),
            blocksize=BLOCK_SIZE,
            compress_statistics=True,
            quant_type="nf4",
        )
        for count in rows
    ]


@pytest.mark.parametrize(
    ("rows", "columns"), [((16,), 64), ((576, 192, 192), 576), ((40, 24), 128), ((960,), 1536), ((8,), 64)]
)
def test_a_repacked_weight_dequantizes_bit_equal_to_bitsandbytes(rows: tuple[int, ...], columns: int) -> None:
    modules = quantized(*rows, columns=columns)
    expected = torch.cat([functional.dequantize_4bit(codes, state) for codes, state in modules])
    assert torch.equal(Nf4Weight.from_bitsandbytes(modules).dequantized(), expected)


def test_quantizing_a_dense_weight_gives_what_bitsandbytes_gives() -> None:
    weight = torch.randn(48, 192, dtype=torch.bfloat16)
    codes, state = functional.quantize_4bit(
        weight, blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
    )
    expected = functional.dequantize_4bit(codes, state)
    assert torch.equal(Nf4Weight.from_dense([weight]).dequantized(), expected)


def test_unpacking_is_the_inverse_of_packing_over_more_than_one_piece() -> None:
    codes = torch.randint(0, 256, (16 * 300 + 8, 64), dtype=torch.uint8)
    scales = torch.rand(16 * 300 + 8, 2)
    unpacked_codes, unpacked_scales = Nf4Weight.from_codes(codes, scales).unpacked()
    assert torch.equal(unpacked_codes, codes)
    assert torch.equal(unpacked_scales, scales)


def test_a_lane_s_word_holds_the_fragment_of_one_tensor_core_product() -> None:
    codes = torch.randint(0, 256, (32, 96), dtype=torch.uint8)
    records = Nf4Weight.from_codes(codes, torch.rand(32, 3)).records
    plain = torch.stack((codes >> 4, codes & 0xF), dim=2).view(32, 192).tolist()
    words = records[:, :, :512].contiguous().view(torch.int32).view(2, 3, 32, 4).tolist()
    for tile in range(2):
        for k_tile in range(3):
            for lane in range(32):
                for step in range(4):
                    fragment = fragment_of(plain, tile * 16, k_tile * 64 + step * 16, lane)
                    assert codes_of(words[tile][k_tile][lane][step] & 0xFFFFFFFF) == fragment


def fragment_of(codes: list[list[int]], row: int, column: int, lane: int) -> list[int]:
    """The A operand of mma.m16n8k16, as the PTX manual lays it out."""
    g, t = lane // 4, lane % 4
    return [codes[row + g + 8 * (i // 2 % 2)][column + 2 * t + i % 2 + 8 * (i // 4)] for i in range(8)]


def codes_of(word: int) -> list[int]:
    """As the kernel takes them: each pair is the table offset at bits 7..14 of the word turned by whole bytes."""
    codes = []
    for pair in range(4):
        turned = (word << 32 | word) >> (8 * pair)
        entry = (turned & 0x7F80) >> 7
        codes += [entry & 15, entry >> 4]
    return codes


def test_inputs_that_are_no_multiple_of_the_block_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 64"):
        Nf4Weight.from_bitsandbytes(quantized(64, columns=32))


def test_a_weight_takes_four_and_a_half_bits_each() -> None:
    weight = Nf4Weight.from_bitsandbytes(quantized(64, columns=128))
    assert weight.nbytes == 64 * 128 * 9 // 16
