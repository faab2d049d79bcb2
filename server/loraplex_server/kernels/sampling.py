"""The next token of each row, chosen on the device without a word from the host.

Greedy rows take the largest logit. In the others tokens race, as in `loraplex_server.engine.sampler.draw`: each has a
random delay that depends on (seed, index, id) alone. No row is sorted: what sorting would decide (the k-th logit, the
end of the nucleus) is found by searching the bits of the logits, sixteen probes at a time. Of equal logits the lowest
id comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.device_code import wait_for_previous
from loraplex_server.kernels.sampling_code import (
    draw_key,
    end_of_truncation,
    first_to_arrive,
    gather_candidates,
)
from loraplex_server.kernels.triton_runtime import (
    Pointer,
    Scalar,
    constexpr,
    jit,
    overlaps_launches,
    require,
    tl,
)

_TILE = 4096  # logits of one program of the first launch
_BLOCK = 8192  # logits of one step of the second
_CAPACITY = 32768  # tokens of a row that truncation is looked for among, if that many suffice
_CANDIDATE_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class RowSampling:
    """Parameters of every row, on the device."""

    temperature: Tensor  # [rows] fp32; 0 is greedy
    top_k: Tensor  # [rows] int32; 0 keeps all
    top_p: Tensor  # [rows] fp32; 1 keeps all
    min_p: Tensor  # [rows] fp32; 0 keeps all
    seed: Tensor  # [rows] int64, the bits of the unsigned seed
    index: Tensor  # [rows] int64, tokens drawn before

    def check(self, rows: int) -> None:
        """Raises ValueError unless there are `rows` of each parameter in its dtype."""
        kinds = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int64)
        tensors = (self.temperature, self.top_k, self.top_p, self.min_p, self.seed, self.index)
        for tensor, dtype in zip(tensors, kinds, strict=True):
            require(tensor.dtype == dtype and tensor.shape[0] >= rows, f"a parameter is not {dtype} [{rows}]")


@dataclass(frozen=True, slots=True)
class SampleScratch:
    """What the launches of `sample` hand to one another."""

    tile_tops: Tensor  # [rows, tiles] fp32
    tile_ids: Tensor  # [rows, tiles] int32
    candidates: Tensor  # [rows, _CAPACITY] fp32
    candidate_ids: Tensor  # [rows, _CAPACITY] int32

    @classmethod
    def allocate(cls, max_rows: int, vocab_size: int, device: torch.device) -> SampleScratch:
        """Scratch for up to `max_rows` rows."""
        tiles = -(-vocab_size // _TILE)
        return cls(
            torch.empty(max_rows, tiles, dtype=torch.float32, device=device),
            torch.empty(max_rows, tiles, dtype=torch.int32, device=device),
            torch.empty(max_rows, _CAPACITY, dtype=torch.float32, device=device),
            torch.empty(max_rows, _CAPACITY, dtype=torch.int32, device=device),
        )

    def check(self, rows: int, vocab_size: int) -> None:
        """Raises ValueError unless this was allocated for as many rows and this vocabulary."""
        max_rows, tiles = self.tile_tops.shape
        require(
            max_rows >= rows and tiles == -(-vocab_size // _TILE),
            f"scratch for {max_rows} rows and {tiles} tiles does not fit {rows} rows of {vocab_size}",
        )


@jit
def _tile_top_kernel(
    logits_ptr: Pointer,
    tops_ptr: Pointer,
    ids_ptr: Pointer,
    row_stride: Scalar,
    VOCAB: constexpr,
    TILES: constexpr,
    TILE: constexpr,
    PDL: constexpr,
) -> None:
    """Program (tile, row): its largest logit and the lowest id that has it."""
    tile = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    ids = tile * TILE + tl.arange(0, TILE)
    wait_for_previous(PDL)
    x = tl.load(logits_ptr + row * row_stride + ids, mask=ids < VOCAB, other=-float("inf"))
    top = tl.max(x, axis=0)
    tl.store(tops_ptr + row * TILES + tile, top)
    tl.store(ids_ptr + row * TILES + tile, tl.min(tl.where(x == top, ids, VOCAB), axis=0))


@jit
def _choose_kernel(
    logits_ptr: Pointer,
    tops_ptr: Pointer,
    ids_ptr: Pointer,
    temperature_ptr: Pointer,
    top_k_ptr: Pointer,
    top_p_ptr: Pointer,
    min_p_ptr: Pointer,
    seed_ptr: Pointer,
    index_ptr: Pointer,
    candidates_ptr: Pointer,
    candidate_ids_ptr: Pointer,
    out_ptr: Pointer,
    row_stride: Scalar,
    IS_GREEDY: constexpr,
    VOCAB: constexpr,
    TILES: constexpr,
    TILES_BLOCK: constexpr,
    CAPACITY: constexpr,
    BLOCK: constexpr,
    CANDIDATE_BLOCK: constexpr,
    PDL: constexpr,
) -> None:
    """Program (row)."""
    row = tl.program_id(0).to(tl.int64)
    tiles = tl.arange(0, TILES_BLOCK)
    mask = tiles < TILES
    wait_for_previous(PDL)
    tops = tl.load(tops_ptr + row * TILES + tiles, mask=mask, other=-float("inf"))
    ids = tl.load(ids_ptr + row * TILES + tiles, mask=mask, other=VOCAB)
    top = tl.max(tops, axis=0)
    chosen = tl.min(tl.where(tops == top, ids, VOCAB), axis=0)
    if not IS_GREEDY:
        temperature = tl.load(temperature_ptr + row)
        if temperature > 0:
            temperature = tl.maximum(temperature, 1e-6)
            top_k = tl.load(top_k_ptr + row)
            top_p = tl.load(top_p_ptr + row)
            min_p = tl.load(min_p_ptr + row)
            low, high = draw_key(tl.load(seed_ptr + row), tl.load(index_ptr + row))
            row_ptr = logits_ptr + row * row_stride
            value_ids_ptr = candidate_ids_ptr + row * CAPACITY
            if (top_k > 0) | (top_p < 1.0):
                top_k = tl.minimum(top_k, VOCAB)
                values_ptr = candidates_ptr + row * CAPACITY
                num_candidates, total = gather_candidates(
                    row_ptr,
                    values_ptr,
                    value_ids_ptr,
                    top,
                    temperature,
                    top_k,
                    top_p,
                    VOCAB,
                    CAPACITY,
                    BLOCK,
                )
                is_gathered = num_candidates > 0
                values_ptr = tl.where(is_gathered, values_ptr, row_ptr)
                num_values = tl.where(is_gathered, num_candidates, VOCAB)
                key, quota = end_of_truncation(
                    values_ptr, num_values, total, top, temperature, top_k, top_p, CANDIDATE_BLOCK
                )
                chosen = first_to_arrive(
                    values_ptr,
                    value_ids_ptr,
                    num_values,
                    is_gathered,
                    key,
                    quota,
                    low,
                    high,
                    top,
                    temperature,
                    min_p,
                    CANDIDATE_BLOCK,
                )
            else:
                chosen = first_to_arrive(
                    row_ptr,
                    value_ids_ptr,
                    VOCAB,
                    False,
                    -0x80000000,
                    0,
                    low,
                    high,
                    top,
                    temperature,
                    min_p,
                    BLOCK,
                )
    tl.store(out_ptr + row, chosen.to(tl.int64))


def sample(logits: Tensor, sampling: RowSampling | None, scratch: SampleScratch, out: Tensor) -> None:
    """The next token of each row; greedy for all rows if `sampling` is None.

    logits     [rows, vocab] fp32, rows contiguous, no NaN; penalties, bias and bans are already in them
    out        [>= rows] int64
    """
    num_rows, vocab_size = logits.shape
    tiles = -(-vocab_size // _TILE)
    require(
        logits.dtype == torch.float32 and logits.stride(1) == 1, "logits must be fp32 with contiguous rows"
    )
    scratch.check(num_rows, vocab_size)
    require(out.dtype == torch.int64 and out.shape[0] >= num_rows, f"out is not int64 [{num_rows}]")
    if sampling is not None:
        sampling.check(num_rows)
    pdl = overlaps_launches(logits)
    _tile_top_kernel[(tiles, num_rows)](
        logits,
        scratch.tile_tops,
        scratch.tile_ids,
        logits.stride(0),
        VOCAB=vocab_size,
        TILES=tiles,
        TILE=_TILE,
        PDL=pdl,
        num_warps=8,
        launch_pdl=pdl,
    )
    _choose_kernel[(num_rows,)](
        logits,
        scratch.tile_tops,
        scratch.tile_ids,
        None if sampling is None else sampling.temperature,
        None if sampling is None else sampling.top_k,
        None if sampling is None else sampling.top_p,
        None if sampling is None else sampling.min_p,
        None if sampling is None else sampling.seed,
        None if sampling is None else sampling.index,
        scratch.candidates,
        scratch.candidate_ids,
        out,
        logits.stride(0),
        IS_GREEDY=sampling is None,
        VOCAB=vocab_size,
        TILES=tiles,
        TILES_BLOCK=1 << max(0, (tiles - 1).bit_length()),
        CAPACITY=_CAPACITY,
        BLOCK=_BLOCK,
        CANDIDATE_BLOCK=_CANDIDATE_BLOCK,
        PDL=pdl,
        num_warps=1 if sampling is None else 16,
        launch_pdl=pdl,
    )
