"""bitsandbytes' NF4 weights in the order in which the tensor cores take them.

NF4: QLoRA, Dettmers et al., 2023. The codes and scales are bitsandbytes' own (blocks of 64, nested scales decoded once
at load), so the weights are equal to its bit for bit; only their places differ.

A tile of 16 outputs × 64 inputs is one record of 576 bytes: 32 lanes × 4 words of 8 codes, then 16 fp32 scales. Lane
4 · g + t holds, in word s, the fragment of the s-th m16n8k16 product: rows g and g + 8, inputs 16 · s + 2 · t and the
next, then those plus 8.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_SIZE = 64  # weights per scale
TILE_ROWS = 16
RECORD_BYTES = 576
_CODE_BYTES = 512
_ROTATION = 7  # a pair of codes then stands at bits 7..14: its offset in a table with 128 bytes per entry

NF4_TABLE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True, slots=True)
class Nf4Weight:
    """One or more modules, side by side along their outputs, on one device."""

    records: Tensor  # [ceil(out / 16), in / 64, 576] uint8
    out_features: int
    in_features: int

    @classmethod
    def from_bitsandbytes(cls, modules: Sequence[tuple[Tensor, Any]]) -> Nf4Weight:
        """Of modules that share an input, each as `bitsandbytes.functional.quantize_4bit` returns it (block 64).

        Raises ValueError: the inputs are no multiple of 64, or a block size is not 64.
        """
        codes, scales = [], []
        for packed, state in modules:
            rows, columns = state.shape
            if state.blocksize != BLOCK_SIZE:
                raise ValueError(f"NF4 blocks of {state.blocksize} weights; only 64 are supported")
            if columns % BLOCK_SIZE:
                raise ValueError(f"{columns} inputs are no multiple of {BLOCK_SIZE}")
            codes.append(packed.view(torch.uint8).view(rows, columns // 2))
            scales.append(_block_scales(state).view(rows, columns // BLOCK_SIZE))
        return cls.from_codes(torch.cat(codes), torch.cat(scales))

    @classmethod
    def from_dense(cls, weights: Sequence[Tensor]) -> Nf4Weight:
        """Quantize modules [out_i, in] of any float dtype by bitsandbytes, each by itself, on their device."""
        functional = _bitsandbytes()
        modules = [
            functional.quantize_4bit(
                weight.contiguous(), blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
            )
            for weight in weights
        ]
        return cls.from_bitsandbytes(modules)

    @classmethod
    def from_codes(cls, codes: Tensor, scales: Tensor) -> Nf4Weight:
        """codes [out, in / 2] uint8, the first of two in the high half; scales [out, in / 64] fp32."""
        out_features, in_features = codes.shape[0], codes.shape[1] * 2
        row_tiles, k_tiles = -(-out_features // TILE_ROWS), in_features // BLOCK_SIZE
        records = torch.empty(row_tiles, k_tiles, RECORD_BYTES, dtype=torch.uint8, device=codes.device)
        for start in range(0, row_tiles, _TILES_AT_ONCE):
            rows = slice(start * TILE_ROWS, (start + _TILES_AT_ONCE) * TILE_ROWS)
            records[start : start + _TILES_AT_ONCE] = _pack(
                _padded(codes[rows], 0x77), _padded(scales[rows], 0)
            )
        return cls(records, out_features, in_features)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales: 0.5625 a weight."""
        return self.records.nbytes

    @property
    def device(self) -> torch.device:
        return self.records.device

    def unpacked(self) -> tuple[Tensor, Tensor]:
        """The arguments of `from_codes`."""
        codes, scales = _unpack(self.records)
        return codes[: self.out_features], scales[: self.out_features]

    def dequantized(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """[out, in], bit-equal to bitsandbytes; the plain-torch reference on any device."""
        return self._values(torch.float32).to(dtype)

    def unrounded(self) -> Tensor:
        """[out, in] fp64: table × scale before any rounding, what the fast product stands for."""
        return self._values(torch.float64)

    def _values(self, dtype: torch.dtype) -> Tensor:
        codes, scales = self.unpacked()
        table = torch.tensor(NF4_TABLE, dtype=dtype, device=codes.device)
        indices = torch.stack((codes >> 4, codes & 0xF), dim=2).view(self.out_features, -1, BLOCK_SIZE)
        return (table[indices.int()] * scales.to(dtype).unsqueeze(2)).view(
            self.out_features, self.in_features
        )


_TILES_AT_ONCE = 256  # rows of tiles repacked together: bounds the scratch


def _padded(rows: Tensor, value: int) -> Tensor:
    """Rows filled up to whole tiles; code 7 is zero."""
    missing = -rows.shape[0] % TILE_ROWS
    if missing == 0:
        return rows
    return torch.cat((rows, rows.new_full((missing, rows.shape[1]), value)))


def _pack(codes: Tensor, scales: Tensor) -> Tensor:
    """codes [16 · a, 32 · b], scales [16 · a, b] -> records [a, b, 576]."""
    a, b = codes.shape[0] // TILE_ROWS, scales.shape[1]
    swapped = (codes >> 4) | (codes << 4)  # the first of two codes goes to the low half
    # Dimensions: tile, row half, g | tile, s, h, t: input = 16s + 8h + 2t + (0, 1), word = s, pair = 2h + row half.
    places = swapped.view(a, 2, 8, b, 4, 2, 4).permute(0, 3, 2, 6, 4, 5, 1)
    words = places.reshape(a, b, 128, 4).view(torch.int32).long() & 0xFFFFFFFF
    rotated = ((words << _ROTATION) | (words >> (32 - _ROTATION))) & 0xFFFFFFFF
    code_bytes = _int32(rotated).view(a, b, 128).view(torch.uint8)
    pairs = scales.view(a, 2, 8, b).permute(0, 3, 2, 1)  # rows g and g + 8 next to each other
    scale_bytes = pairs.contiguous().view(a, b, TILE_ROWS).view(torch.uint8)
    return torch.cat((code_bytes, scale_bytes), dim=2)


def _unpack(records: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `_pack`."""
    a, b, _ = records.shape
    words = records[:, :, :_CODE_BYTES].contiguous().view(torch.int32).long() & 0xFFFFFFFF
    plain = ((words >> _ROTATION) | (words << (32 - _ROTATION))) & 0xFFFFFFFF
    places = _int32(plain).view(torch.uint8).view(a, b, 8, 4, 4, 2, 2)
    swapped = places.permute(0, 6, 2, 1, 4, 5, 3).reshape(a * TILE_ROWS, b * BLOCK_SIZE // 2)
    pairs = records[:, :, _CODE_BYTES:].contiguous().view(torch.float32).view(a, b, 8, 2)
    scales = pairs.permute(0, 3, 2, 1).reshape(a * TILE_ROWS, b)
    return (swapped >> 4) | (swapped << 4), scales


def _int32(words: Tensor) -> Tensor:
    """The same 32 bits, from an int64 in [0, 2³²)."""
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _block_scales(state: Any) -> Tensor:
    """fp32 scale of each block, as bitsandbytes decodes its nested scales before it dequantizes."""
    if not state.nested:
        return state.absmax.float()  # type: ignore[no-any-return]
    scales: Tensor = _bitsandbytes().dequantize_blockwise(state.absmax, state.state2)
    decoded: Tensor = scales + state.offset
    return decoded.float()


def _bitsandbytes() -> Any:
    """bitsandbytes.functional, imported when first needed."""
    # Where bf16 instructions exist it looks for one more package of kernels and warns of its absence; its own serve.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from bitsandbytes import functional

    return functional
