"""The sampler against a slow reference, and the promises about its draws."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loraplex_server.engine.messages import SamplingParams
from loraplex_server.engine.sampler import Sampler, exponentials
from loraplex_server.engine.sequence import Sequence
from tests.unit.engine.simulation import add_command

EOS = 0
VOCAB_SIZE = 40


def sequence_of(sampling: SamplingParams, prompt: list[int], output: list[int]) -> Sequence:
    sequence = Sequence.of(add_command(0, prompt, sampling=sampling), order=0)
    sequence.output_token_ids += output
    return sequence


def random_logits(seed: int, rows: int = 1, vocab_size: int = VOCAB_SIZE) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def reference_adjusted(logits: list[float], sequence: Sequence) -> list[float]:
    values, p = list(logits), sequence.sampling
    for token, bias in p.logit_bias.items():
        values[token] += bias
    counts = Counter(sequence.output_token_ids)
    for token in {*sequence.prompt_token_ids, *sequence.output_token_ids}:
        value = values[token]
        values[token] = value / p.repetition_penalty if value > 0 else value * p.repetition_penalty
    for token, times in counts.items():
        values[token] -= p.presence_penalty + p.frequency_penalty * times
    if len(sequence.output_token_ids) < p.min_tokens:
        for token in (*p.stop_token_ids, *(() if p.ignore_eos else (EOS,))):
            values[token] = -math.inf
    return values


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    masses = [math.exp(value - top) for value in values]
    return [mass / sum(masses) for mass in masses]


def reference_distribution(adjusted: list[float], p: SamplingParams) -> dict[int, float]:
    """Token -> probability after temperature and truncation."""
    masses = softmax([value / p.temperature for value in adjusted])
    order = sorted(range(len(masses)), key=lambda token: -masses[token])
    order = order[: p.top_k or len(order)]
    total, before = sum(masses[t] for t in order), 0.0
    nucleus: list[int] = []
    for token in order:
        if nucleus and before >= p.top_p * total:
            break
        nucleus.append(token)
        before += masses[token]
    kept = [token for token in nucleus if masses[token] >= p.min_p * masses[nucleus[0]]]
    total = sum(masses[token] for token in kept)
    return {token: masses[token] / total for token in kept if masses[token] > 0}


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 100]),
    top_p=st.sampled_from([1.0, 0.9, 0.35]),
    min_p=st.sampled_from([0.0, 0.07]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    presence_penalty=st.sampled_from([0.0, 0.7, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.sampled_from([-5.0, 2.5]), max_size=3),
    seed=st.integers(0, 2**64 - 1),
    min_tokens=st.integers(0, 6),
    stop_token_ids=st.sampled_from([(), (4, 9)]),
    ignore_eos=st.booleans(),
    top_logprobs=st.sampled_from([None, 0, 4]),
)
TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=8)


@settings(max_examples=300, deadline=None)
@given(params=PARAMS, prompt=TOKENS, output=TOKENS, seed=st.integers(0, 10_000))
def test_a_row_follows_the_reference(
    params: SamplingParams, prompt: list[int], output: list[int], seed: int
) -> None:
    logits = random_logits(seed)
    sequence = sequence_of(params, prompt, output)
    adjusted = reference_adjusted(logits[0].tolist(), sequence)

    [sampled] = Sampler([EOS])(logits, [sequence])

    if params.temperature == 0:
        assert adjusted[sampled.token_id] == pytest.approx(max(adjusted), abs=1e-4)
    else:
        assert sampled.token_id in reference_distribution(adjusted, params)
    if params.top_logprobs is None:
        assert sampled.logprob is None
        return
    expected = [math.log(mass) if mass else -math.inf for mass in softmax(adjusted)]
    assert sampled.logprob is not None
    assert sampled.logprob.logprob == pytest.approx(expected[sampled.token_id], abs=1e-4)
    assert [value for _, value in sampled.logprob.top] == pytest.approx(
        sorted(expected, reverse=True)[: params.top_logprobs], abs=1e-4
    )
    assert all(expected[token] == pytest.approx(value, abs=1e-4) for token, value in sampled.logprob.top)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6, top_k=8),
        SamplingParams(temperature=1.5, top_p=0.8),
        SamplingParams(min_p=0.05),
        SamplingParams(top_k=20, top_p=0.9, min_p=0.02),
    ],
)
def test_draws_follow_the_truncated_distribution(params: SamplingParams) -> None:
    num_draws = 4000
    logits = random_logits(seed=3) / 2
    seeded = [
        SamplingParams(
            temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p, seed=s
        )
        for s in range(num_draws)
    ]
    expected = reference_distribution(logits[0].tolist(), params)

    sampled = Sampler([EOS])(logits.repeat(num_draws, 1), [sequence_of(p, [1], []) for p in seeded])

    counts = Counter(token.token_id for token in sampled)
    assert counts.keys() <= expected.keys()
    chi_square = sum((counts[t] - num_draws * p) ** 2 / (num_draws * p) for t, p in expected.items())
    freedom = len(expected) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(st.tuples(PARAMS, TOKENS, TOKENS), min_size=2, max_size=6), seed=st.integers(0, 10_000))
def test_a_row_is_answered_alike_alone_and_in_any_batch(
    batch: list[tuple[SamplingParams, list[int], list[int]]], seed: int
) -> None:
    logits = random_logits(seed, rows=len(batch))

    together = Sampler([EOS])(logits.clone(), [sequence_of(*row) for row in batch])
    alone = [Sampler([EOS])(logits[i : i + 1].clone(), [sequence_of(*row)])[0] for i, row in enumerate(batch)]

    assert [token.token_id for token in together] == [token.token_id for token in alone]


def test_equal_logits_go_to_the_lowest_id() -> None:
    logits = torch.zeros(3, 49152)
    logits[1, [70, 40_000]] = 2.0
    logits[2, [11, 12, 49_151]] = 5.0
    greedy = sequence_of(SamplingParams(temperature=0.0), [1], [])

    assert [t.token_id for t in Sampler([EOS])(logits, [greedy] * 3)] == [0, 70, 11]


def test_of_equal_logits_top_k_keeps_the_lowest_ids() -> None:
    logits = torch.zeros(1, 5000)
    logits[0, [4000, 4500]] = 1.0
    sequences = [sequence_of(SamplingParams(top_k=6, seed=s), [1], []) for s in range(80)]

    picked = {t.token_id for t in Sampler([EOS])(logits.repeat(80, 1), sequences)}

    assert picked == {0, 1, 2, 3, 4000, 4500}


def test_top_p_holds_when_the_mass_is_spread_over_most_of_a_large_vocabulary() -> None:
    logits = random_logits(seed=5, vocab_size=20_000) / 30
    masses, order = torch.softmax(logits[0].double(), 0).sort(descending=True)
    nucleus = set(order[: int((masses.cumsum(0) < 0.9).sum()) + 2].tolist())
    sequences = [sequence_of(SamplingParams(top_p=0.9, seed=s), [1], []) for s in range(60)]

    picked = {t.token_id for t in Sampler([EOS])(logits.repeat(60, 1), sequences)}

    assert picked <= nucleus
    likely = set(order[:1024].tolist())
    assert picked - likely, "only the first candidates were ever considered"


def test_a_tiny_temperature_is_greedy_without_overflow() -> None:
    logits = random_logits(seed=8)
    best = int(logits.argmax())
    sequence = sequence_of(SamplingParams(temperature=1e-30, seed=4), [1], [])

    assert Sampler([EOS])(logits, [sequence])[0].token_id == best


def test_counts_of_tokens_grow_with_the_completion() -> None:
    sequence = sequence_of(SamplingParams(), [5, 6, 5], [6])
    assert sequence.token_counts() == {5: 0, 6: 1}

    sequence.output_token_ids += [6, 7]

    assert sequence.token_counts() == {5: 0, 6: 2, 7: 1}


def test_rounding_of_logits_hardly_ever_changes_a_draw() -> None:
    num_draws, vocab_size = 300, 20_000
    logits = random_logits(seed=2, vocab_size=vocab_size) / 3
    noise = 1 + 1e-5 * random_logits(seed=6, vocab_size=vocab_size) / 3  # some tens of times that of fp32
    sequences = [sequence_of(SamplingParams(seed=s), [1], []) for s in range(num_draws)]

    first = Sampler([EOS])(logits.repeat(num_draws, 1), sequences)
    second = Sampler([EOS])((logits * noise).repeat(num_draws, 1), sequences)

    changed = sum(a.token_id != b.token_id for a, b in zip(first, second, strict=True))
    assert changed <= 1, "each token's limits hang on all before it"


def reference_exponential(seed: int, index: int, token_id: int) -> float:
    mask32, mask64 = (1 << 32) - 1, (1 << 64) - 1
    z = (seed * 0xD1342543DE82EF95 + (index + 1) * 0x9E3779B97F4A7C15) & mask64
    for _ in range(2):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask64
        z ^= z >> 31
    x = (token_id * 0x9E3779B1 + z) & mask32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask32
    x ^= x >> 15
    x = ((x + (z >> 32)) * 0x846CA68B) & mask32
    x ^= x >> 16
    return -math.log1p(-((x & 0x7FFFFFFF) + 0.5) / 2**31)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(0, 2**20),
    ids=st.lists(st.integers(0, 2**20), min_size=1, max_size=70),
)
def test_delays_depend_on_seed_position_and_token_alone(seed: int, index: int, ids: list[int]) -> None:
    delays = exponentials(seed, index, torch.tensor(ids))

    expected = [reference_exponential(seed, index, token_id) for token_id in ids]
    for delay, exact in zip(delays.tolist(), expected, strict=True):
        # -log1p(-u) of a u in fp32: near 1, where a delay is long, u's own rounding counts.
        assert abs(delay - exact) <= 2.0**-24 * math.exp(exact) + 1e-6 * exact


@pytest.mark.parametrize("along", ["tokens", "positions", "seeds"])
def test_delays_are_exponential_and_independent_of_their_neighbours(along: str) -> None:
    num, ids = 8_000, torch.tensor([7])
    if along == "tokens":
        delays = exponentials(3, 5, torch.arange(num))
    elif along == "positions":
        delays = torch.cat([exponentials(3, index, ids) for index in range(num)])
    else:
        delays = torch.cat([exponentials(seed, 5, ids) for seed in range(num)])

    assert len(set(delays.tolist())) > 0.999 * num
    tenths = Counter((torch.expm1(-delays) * -10).long().tolist())  # the distribution function, in ten parts
    assert all(abs(tenths[tenth] - num / 10) < 5 * math.sqrt(num / 10) for tenth in range(10))
    neighbours = torch.corrcoef(torch.stack((delays[:-1], delays[1:])))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(num)
    assert 0 < float(delays.min()) < 10 / num
