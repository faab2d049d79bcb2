"""The next token of each row, chosen on the device without a word from the host.

Greedy rows take the largest logit. Others hold the race of `loraplex_server.engine.sampler`: the same hash gives the
same exponentials, so that both choose the same token of equal logits, except where two arrive at almost the same time
or the end of what top-k, top-p and min-p keep is a matter of rounding. Of equal logits the lowest id comes first.

No row is sorted, and all but the last launch spread every row over many programs. The first counts what lies above
some probes; from that the second knows which tokens are kept whatever the details, and races them. Only those
between two probes are left for the last launch, which searches the bits of their logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraplex_server.kernels.sampling_kernels import choose_kernel, race_kernel, survey_kernel
from loraplex_server.kernels.triton_runtime import next_power_of_2, overlaps_launches, require

_TILE = 4096  # logits of one program of the first two launches
_PROBES = 16
_SAMPLE = 128  # logits of a row that the probes are picked from
_SURVEY_BLOCK = 512  # logits of one step of the first launch
_CAPACITY = 32768  # undecided tokens of a row that are listed; of more, the last launch reads the whole row
_CHOOSE_BLOCK = 1024  # tokens of one step of the last launch


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

    tile_tops: Tensor  # [rows, tiles] fp32, the largest logit
    tile_ids: Tensor  # [rows, tiles] int32, its id
    probe_keys: Tensor  # [rows, _PROBES] int32
    probe_counts: Tensor  # [rows, tiles, _PROBES] int32, tokens from a probe on
    probe_masses: Tensor  # [rows, tiles, _PROBES] fp32, their mass
    tile_speeds: Tensor  # [rows, tiles] fp32, of the first to arrive
    tile_winners: Tensor  # [rows, tiles] int32, its id
    undecided: Tensor  # [rows, _CAPACITY] fp32
    undecided_ids: Tensor  # [rows, _CAPACITY] int32, ascending
    bounds: Tensor  # [rows, 4] int32: keys that the undecided lie in, tokens above, how many
    bound_masses: Tensor  # [rows, 2] fp64: mass of the tokens above and of the row

    @classmethod
    def allocate(cls, max_rows: int, vocab_size: int, device: torch.device) -> SampleScratch:
        """Scratch for up to `max_rows` rows."""
        tiles = -(-vocab_size // _TILE)

        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(max_rows, *shape, dtype=dtype, device=device)

        return cls(
            empty(tiles, dtype=torch.float32),
            empty(tiles, dtype=torch.int32),
            empty(_PROBES, dtype=torch.int32),
            empty(tiles, _PROBES, dtype=torch.int32),
            empty(tiles, _PROBES, dtype=torch.float32),
            empty(tiles, dtype=torch.float32),
            empty(tiles, dtype=torch.int32),
            empty(_CAPACITY, dtype=torch.float32),
            empty(_CAPACITY, dtype=torch.int32),
            empty(4, dtype=torch.int32),
            empty(2, dtype=torch.float64),
        )

    def check(self, rows: int, vocab_size: int) -> None:
        """Raises ValueError unless this was allocated for as many rows and this vocabulary."""
        max_rows, tiles = self.tile_tops.shape
        require(
            max_rows >= rows and tiles == -(-vocab_size // _TILE),
            f"scratch for {max_rows} rows and {tiles} tiles does not fit {rows} rows of {vocab_size}",
        )


def sample(logits: Tensor, sampling: RowSampling | None, scratch: SampleScratch, out: Tensor) -> None:
    """The next token of each row; greedy for all rows if `sampling` is None.

    logits     [rows, vocab] fp32, rows contiguous; penalties, bias and bans are already in them
    out        [>= rows] int64; -1 for a row with a NaN
    """
    num_rows, vocab_size = logits.shape
    require(
        logits.dtype == torch.float32 and logits.stride(1) == 1, "logits must be fp32 with contiguous rows"
    )
    scratch.check(num_rows, vocab_size)
    require(out.dtype == torch.int64 and out.shape[0] >= num_rows, f"out is not int64 [{num_rows}]")
    if sampling is not None:
        sampling.check(num_rows)
    _survey(logits, sampling, scratch)
    if sampling is not None:
        _race(logits, sampling, scratch)
    _choose(logits, sampling, scratch, out)


def _survey(logits: Tensor, sampling: RowSampling | None, scratch: SampleScratch) -> None:
    num_rows, vocab_size = logits.shape
    tiles = scratch.tile_tops.shape[1]
    pdl = overlaps_launches(logits)
    survey_kernel[(tiles, num_rows)](
        logits,
        scratch.tile_tops,
        scratch.tile_ids,
        None if sampling is None else sampling.temperature,
        None if sampling is None else sampling.top_k,
        None if sampling is None else sampling.top_p,
        scratch.probe_keys,
        scratch.probe_counts,
        scratch.probe_masses,
        logits.stride(0),
        IS_GREEDY=sampling is None,
        VOCAB=vocab_size,
        TILES=tiles,
        TILE=_TILE,
        SAMPLE=_SAMPLE,
        PROBES=_PROBES,
        BLOCK=_SURVEY_BLOCK,
        PDL=pdl,
        num_warps=8,
        launch_pdl=pdl,
    )


def _race(logits: Tensor, sampling: RowSampling, scratch: SampleScratch) -> None:
    num_rows, vocab_size = logits.shape
    tiles = scratch.tile_tops.shape[1]
    pdl = overlaps_launches(logits)
    race_kernel[(tiles, num_rows)](
        logits,
        scratch.tile_tops,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.seed,
        sampling.index,
        scratch.probe_keys,
        scratch.probe_counts,
        scratch.probe_masses,
        scratch.tile_speeds,
        scratch.tile_winners,
        scratch.undecided,
        scratch.undecided_ids,
        scratch.bounds,
        scratch.bound_masses,
        logits.stride(0),
        VOCAB=vocab_size,
        TILES=tiles,
        TILES_BLOCK=next_power_of_2(tiles),
        TILE=_TILE,
        PROBES=_PROBES,
        CAPACITY=_CAPACITY,
        PDL=pdl,
        num_warps=16,
        launch_pdl=pdl,
    )


def _choose(logits: Tensor, sampling: RowSampling | None, scratch: SampleScratch, out: Tensor) -> None:
    num_rows, vocab_size = logits.shape
    tiles = scratch.tile_tops.shape[1]
    pdl = overlaps_launches(logits)
    choose_kernel[(num_rows,)](
        logits,
        scratch.tile_tops,
        scratch.tile_ids,
        None if sampling is None else sampling.temperature,
        None if sampling is None else sampling.top_k,
        None if sampling is None else sampling.top_p,
        None if sampling is None else sampling.min_p,
        None if sampling is None else sampling.seed,
        None if sampling is None else sampling.index,
        scratch.tile_speeds,
        scratch.tile_winners,
        scratch.undecided,
        scratch.undecided_ids,
        scratch.bounds,
        scratch.bound_masses,
        out,
        logits.stride(0),
        IS_GREEDY=sampling is None,
        VOCAB=vocab_size,
        TILES=tiles,
        TILES_BLOCK=next_power_of_2(tiles),
        CAPACITY=_CAPACITY,
        BLOCK=_CHOOSE_BLOCK,
        PDL=pdl,
        num_warps=1 if sampling is None else 16,
        launch_pdl=pdl,
    )
