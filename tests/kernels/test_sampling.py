"""Sampling on the device: the same tokens as the engine's sampler in plain torch, given the same logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex_server.engine.messages import SamplingParams
from loraplex_server.engine.sampler import Sampler, exponentials
from loraplex_server.engine.sequence import Sequence
from loraplex_server.kernels.sampling import RowSampling, SampleScratch, sample
from loraplex_server.kernels.sampling_code import exponentials as device_exponentials
from loraplex_server.kernels.sampling_code import race_key
from loraplex_server.kernels.triton_runtime import Pointer, constexpr, jit, tl
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
    for field in fields(scratch):
        tensor = getattr(scratch, field.name)
        tensor.fill_(torch.nan if tensor.is_floating_point() else -7)
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


@pytest.mark.parametrize("vocab_size", [40, 9000])
@pytest.mark.parametrize("numbers", ["none", "some", "all but one"])
def test_a_row_with_what_is_no_number_gives_no_token(
    vocab_size: int, numbers: str, device: torch.device
) -> None:
    logits = random_logits(len(KINDS) + 2, vocab_size, device)
    spoiled = {"none": slice(None), "some": slice(3, 20), "all but one": slice(-1, None)}[numbers]
    logits[1:, spoiled] = torch.nan
    params = [(SamplingParams(seed=1, **kind), 0) for kind in ({}, {"temperature": 0.0}, *KINDS.values())]

    for tokens in (device_sample(logits, params), engine_sample(logits, params)):
        assert 0 <= tokens[0] < vocab_size
        assert tokens[1:] == [-1] * (len(logits) - 1)
    assert device_sample(logits, None)[1:] == [-1] * (len(logits) - 1)


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


ROWS: dict[str, Callable[[int], Tensor]] = {
    "flat": lambda vocab_size: torch.randn(vocab_size) * 0.01,
    "flat and coarse": lambda vocab_size: (torch.randn(vocab_size) * 0.01 + 1.0).bfloat16().float(),
    "all equal": lambda vocab_size: torch.full((vocab_size,), -2.5),
    "peaked": lambda vocab_size: torch.randn(vocab_size) * 2 + 14.0 * (torch.arange(vocab_size) % 977 == 5),
    "spread": lambda vocab_size: torch.linspace(300, -300, vocab_size),
    "mostly banned": lambda vocab_size: torch.where(
        torch.arange(vocab_size) % 500 == 3, torch.randn(vocab_size), -torch.inf
    ),
}
CUTS: list[dict[str, Any]] = [
    {},
    {"top_p": 0.9},
    {"top_p": 0.3, "min_p": 0.5},
    {"top_k": 1000, "temperature": 5.0},
    {"top_k": 4000, "top_p": 0.6},
]


def check_cuts(rows: str, vocab_size: int, draws: int, device: torch.device) -> None:
    logits = ROWS[rows](vocab_size).to(device).expand(draws * len(CUTS), -1).contiguous()
    params = [(SamplingParams(seed=8, **cut), index) for cut in CUTS for index in range(draws)]

    assert device_sample(logits, params) == engine_sample(logits, params)


@pytest.mark.parametrize("rows", ROWS)
def test_draws_from_flat_and_peaked_rows_equal_those_of_the_engine(rows: str, device: torch.device) -> None:
    check_cuts(rows, 9000, 2, device)


def test_more_undecided_tokens_than_the_scratch_lists_are_read_from_the_row(device: torch.device) -> None:
    logits = torch.zeros(2, 33000, device=device)
    logits[1, ::2] = 1.0
    params = [(SamplingParams(seed=8, top_p=0.5), 2), (SamplingParams(seed=8, top_k=20000), 3)]

    tokens = device_sample(logits, params)

    assert tokens[0] == engine_sample(logits[:1], params[:1])[0]
    kept = torch.cat([torch.arange(0, 33000, 2), torch.arange(1, 7000, 2)])  # of equal logits, the lowest ids
    speeds = logits[1].cpu()[kept].exp() / exponentials(8, 3, kept)
    assert tokens[1] == int(kept[speeds.argmax()])


def test_a_draw_does_not_depend_on_the_rest_of_the_batch(device: torch.device) -> None:
    logits = random_logits(len(KINDS), 5000, device)
    params = [(SamplingParams(seed=21, **kind), 4) for kind in KINDS.values()]

    alone = [device_sample(logits[row : row + 1], [params[row]])[0] for row in range(len(KINDS))]

    assert device_sample(logits, params) == alone
    assert device_sample(logits.flip(0), params[::-1]) == alone[::-1]


def test_tokens_are_drawn_as_often_as_they_are_likely(device: torch.device) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -5.0], device=device)
    draws = 250
    params = [(SamplingParams(seed=3, temperature=0.8, min_p=0.001), index) for index in range(draws)]

    tokens = device_sample(logits.expand(draws, -1).contiguous(), params)

    counts = torch.bincount(torch.tensor(tokens), minlength=6)
    assert counts[5] == 0
    expected = torch.softmax(logits[:5].cpu() / 0.8, dim=0) * draws
    chi_square = ((counts[:5] - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 4 degrees of freedom; more in 1 of 1000 seeds


@jit
def exponentials_kernel(
    seed_ptr: Pointer, index_ptr: Pointer, ids_ptr: Pointer, out_ptr: Pointer, BLOCK: constexpr
) -> None:
    places = tl.arange(0, BLOCK)
    key = race_key(tl.load(seed_ptr), tl.load(index_ptr))
    tl.store(out_ptr + places, device_exponentials(key, tl.load(ids_ptr + places)))


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 12345, 2**64 - 1])
def test_the_exponentials_are_those_of_the_engine_to_the_last_digits(seed: int, device: torch.device) -> None:
    """Also the ends: among so many are some of about 1e-5, whose 1 - u has lost most digits, and some above 10."""
    ids = torch.arange(1 << 17, dtype=torch.int32, device=device)
    seeds = torch.tensor([seed - (1 << 64 if seed >> 63 else 0)], device=device)
    out = torch.empty(ids.shape, dtype=torch.float32, device=device)

    exponentials_kernel[(1,)](seeds, torch.tensor([41], device=device), ids, out, BLOCK=ids.numel())

    expected = exponentials(seed, 41, ids.cpu())
    assert expected.min() < 1e-4
    assert expected.max() > 9
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-6, atol=0)


def test_rows_of_all_kinds_mix(device: torch.device) -> None:
    params = [(SamplingParams(seed=5, **kind), 3) for kind in KINDS.values()]
    params.append((SamplingParams(temperature=0.0), 0))
    logits = random_logits(len(params), 100, device)

    assert device_sample(logits, params) == engine_sample(logits, params)


def test_equal_logits_are_kept_in_the_order_of_ids(device: torch.device) -> None:
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


@pytest.mark.gpu
@pytest.mark.parametrize("rows", ROWS)
def test_draws_from_flat_and_peaked_rows_of_a_real_vocabulary_equal_those_of_the_engine(
    rows: str, device: torch.device
) -> None:
    check_cuts(rows, 128256, 8, device)
