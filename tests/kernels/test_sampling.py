"""Sampling on the device: the same tokens as the engine's sampler in plain torch, given the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex_server.engine.messages import SamplingParams
from loraplex_server.engine.sampler import Sampler
from loraplex_server.engine.sequence import Sequence
from loraplex_server.kernels.sampling import RowSampling, SampleScratch, sample
from tests.unit.engine.simulation import add_command


def device_sample(logits: Tensor, params: list[tuple[SamplingParams, int]] | None) -> list[int]:
    """Tokens of `sample`; each row's parameters and how many tokens it drew before."""
    rows, vocab_size = logits.shape
    device = logits.device
    sampling = None
    if params is not None:

        def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        seeds = [p.seed - (1 << 64 if p.seed >> 63 else 0) for p, _ in params]
        sampling = RowSampling(
            column([p.temperature for p, _ in params], torch.float32),
            column([p.top_k for p, _ in params], torch.int32),
            column([p.top_p for p, _ in params], torch.float32),
            column([p.min_p for p, _ in params], torch.float32),
            column(seeds, torch.int64),
            column([index for _, index in params], torch.int64),
        )
    scratch = SampleScratch.allocate(rows, vocab_size, device)
    for tensor in (scratch.tile_tops, scratch.candidates):
        tensor.fill_(torch.nan)
    for tensor in (scratch.tile_ids, scratch.candidate_ids):
        tensor.fill_(-7)
    out = torch.full((rows,), -7, dtype=torch.int64, device=device)
    sample(logits, sampling, scratch, out)
    return out.tolist()


def engine_sample(logits: Tensor, params: list[tuple[SamplingParams, int]]) -> list[int]:
    sequences = []
    for p, index in params:
        sequence = Sequence.of(add_command(0, [1], sampling=p), order=0)
        sequence.output_token_ids += [1] * index
        sequences.append(sequence)
    return [token.token_id for token in Sampler([0])(logits.cpu().clone(), sequences)]


def random_logits(rows: int, vocab_size: int, device: torch.device) -> Tensor:
    return (torch.randn(rows, vocab_size) * 3).to(device)


@pytest.mark.parametrize("vocab_size", [40, 9000])
def test_greedy_takes_the_largest_logit_and_the_lowest_id_of_equals(
    vocab_size: int, device: torch.device
) -> None:
    logits = random_logits(5, vocab_size, device)
    logits[1, [vocab_size - 1, 7, 33]] = 50.0
    logits[2] = -torch.inf
    logits[2, vocab_size - 2] = -3.0
    logits[3] = 0.0

    tokens = device_sample(logits, None)

    assert tokens == logits.cpu().argmax(dim=-1).tolist()
    assert tokens[1:4] == [7, vocab_size - 2, 0]


KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "hot": {"temperature": 1.7},
    "cold": {"temperature": 0.2},
    "min-p": {"min_p": 0.05},
    "top-k": {"top_k": 5},
    "top-k of one": {"top_k": 1},
    "top-k beyond the vocabulary": {"top_k": 1 << 20},
    "top-p": {"top_p": 0.8},
    "top-p of nearly nothing": {"top_p": 1e-9},
    "all": {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
}


def check_draws(kind: str, rows: int, vocab_size: int, device: torch.device) -> None:
    logits = random_logits(rows, vocab_size, device)
    params = [
        (SamplingParams(seed=(row * 0x9E3779B97F4A7C15) % 2**64, **KINDS[kind]), row) for row in range(rows)
    ]

    assert device_sample(logits, params) == engine_sample(logits, params)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_equal_those_of_the_engine(kind: str, device: torch.device) -> None:
    check_draws(kind, 4, 300, device)


def test_draws_equal_those_of_the_engine_over_several_blocks(device: torch.device) -> None:
    check_draws("whole", 3, 20000, device)
    check_draws("all", 2, 20000, device)


def test_a_distribution_too_flat_to_pick_candidates_from_is_drawn_from_whole(device: torch.device) -> None:
    """More than the scratch holds lie within the nucleus, or nobody knows within which distance the k-th lies."""
    flat = torch.randn(1, 33000).to(device) * 0.01
    spread = torch.linspace(-300, 300, 1500).flip(0).unsqueeze(0).to(device)
    kinds: list[dict[str, Any]] = [{"top_p": 0.9}, {"top_k": 1000, "temperature": 5.0}]
    for logits, kind in zip((flat, spread), kinds, strict=True):
        params = [(SamplingParams(seed=8, **kind), 2)]

        assert device_sample(logits, params) == engine_sample(logits, params)


def test_rows_of_all_kinds_mix(device: torch.device) -> None:
    params = [(SamplingParams(seed=5, **kind), 3) for kind in KINDS.values()]
    params.append((SamplingParams(temperature=0.0), 0))
    logits = random_logits(len(params), 100, device)

    assert device_sample(logits, params) == engine_sample(logits, params)


def test_equal_logits_are_drawn_in_the_order_of_ids(device: torch.device) -> None:
    """Logits of a bf16 product are often equal. A nucleus that ends among ten equals is the first five."""
    logits = torch.full((24, 64), -torch.inf, device=device)
    logits[:, 10:20] = 1.0
    params = [(SamplingParams(top_p=0.45, seed=3), index) for index in range(24)]

    tokens = device_sample(logits, params)

    assert set(tokens) == {10, 11, 12, 13, 14}
    assert tokens == engine_sample(logits, params)


def test_coarse_logits_with_top_p_equal_those_of_the_engine(device: torch.device) -> None:
    logits = random_logits(6, 300, device).round()
    params = [(SamplingParams(top_p=0.85, seed=11), index) for index in range(6)]

    assert device_sample(logits, params) == engine_sample(logits, params)


def test_banned_tokens_are_never_drawn(device: torch.device) -> None:
    logits = torch.full((12, 50), -torch.inf, device=device)
    logits[:, [4, 40]] = torch.tensor([0.0, 0.5], device=device)
    kinds: list[dict[str, Any]] = [{}, {"top_p": 0.99}, {"top_k": 10}, {"temperature": 100.0}]
    params = [(SamplingParams(seed=row, **kinds[row % 4]), row) for row in range(12)]

    assert set(device_sample(logits, params)) == {4, 40}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_draws_over_a_real_vocabulary_equal_those_of_the_engine(kind: str, device: torch.device) -> None:
    check_draws(kind, 64, 128256, device)
