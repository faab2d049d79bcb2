"""Logits -> one token per row, each row by its own parameters.

Greedy rows without adjustments cost one argmax over the batch. Everything else is done on just the rows that ask for
it. A draw depends on the request's seed and the position alone, never on what else is in the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from loraplex_server.engine.messages import SamplingParams, TokenLogprob
from loraplex_server.engine.scheduler import SampledToken
from loraplex_server.engine.sequence import Sequence

_MASK64 = (1 << 64) - 1


class Sampler:
    """Chooses the next token of each row. Stateless but for the end-of-sequence ids."""

    def __init__(self, eos_token_ids: Iterable[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)

    def __call__(self, logits: Tensor, sequences: list[Sequence]) -> list[SampledToken]:
        """logits [rows, vocab] fp32, changed in place; one sequence per row."""
        for row, sequence in enumerate(sequences):
            self._adjust(logits[row], sequence)
        token_ids: list[int] = logits.argmax(dim=-1).tolist()
        drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
        if drawn:
            picked = draw(logits[drawn], [sequences[row] for row in drawn])
            for row, token_id in zip(drawn, picked, strict=True):
                token_ids[row] = token_id
        logprobs = _logprobs(logits, sequences, token_ids)
        return [SampledToken(token_id, logprobs.get(row)) for row, token_id in enumerate(token_ids)]

    def _adjust(self, logits: Tensor, sequence: Sequence) -> None:
        """Bias, penalties and the ban on ending early, on one row [vocab], in place."""
        sampling = sequence.sampling
        if sampling.logit_bias:
            ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
            logits[ids] += torch.tensor(list(sampling.logit_bias.values()), device=logits.device)
        if sampling.repetition_penalty != 1.0:
            _penalize_repetition(logits, sequence)
        if sampling.presence_penalty or sampling.frequency_penalty:
            _penalize_occurrence(logits, sequence)
        if len(sequence.output_token_ids) < sampling.min_tokens:
            ends = [*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._eos_token_ids)]
            if ends:
                logits[torch.tensor(ends, device=logits.device)] = -torch.inf


def _penalize_repetition(logits: Tensor, sequence: Sequence) -> None:
    """CTRL, Keskar et al., 2019: shrink positive and stretch negative logits of all tokens seen so far."""
    seen = torch.tensor(
        sorted({*sequence.prompt_token_ids, *sequence.output_token_ids}), device=logits.device
    )
    values = logits[seen]
    penalty = sequence.sampling.repetition_penalty
    logits[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _penalize_occurrence(logits: Tensor, sequence: Sequence) -> None:
    """Subtract a constant for presence in the completion, and another per occurrence."""
    counts = Counter(sequence.output_token_ids)
    if counts:
        ids = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        sampling = sequence.sampling
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times


def draw(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    """Sample one token per row of adjusted logits [rows, vocab] with temperature > 0.

    Inverse of the cumulative distribution at one uniform number per row; truncated tokens have no mass.
    """
    params = [sequence.sampling for sequence in sequences]
    temperatures = torch.tensor([p.temperature for p in params], device=logits.device).unsqueeze(1)
    probabilities = torch.softmax(logits / temperatures, dim=-1)
    for row, p in enumerate(params):
        if _truncates(p):
            _truncate(probabilities[row], p)
    cumulative = probabilities.to(torch.float64).cumsum(dim=-1)
    uniforms = [uniform(s.sampling.seed, len(s.output_token_ids)) for s in sequences]
    targets = torch.tensor(uniforms, dtype=torch.float64, device=logits.device) * cumulative[:, -1]
    # The first token whose cumulative mass exceeds the target; one without mass never does so first.
    found = torch.searchsorted(cumulative, targets.unsqueeze(1), right=True).squeeze(1)
    picked: list[int] = found.clamp(max=logits.shape[1] - 1).tolist()
    return picked


def _truncates(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _truncate(probabilities: Tensor, params: SamplingParams) -> None:
    """Zero all but the kept tokens of one row [vocab], in place: top-k, then top-p of what is left, then min-p."""
    num_kept = min(params.top_k or probabilities.numel(), probabilities.numel())
    kept, ids = probabilities.topk(num_kept)  # sorted, most likely first
    if params.top_p < 1.0:
        before = kept.cumsum(0) - kept
        kept = kept[before < params.top_p * kept.sum()]  # the first token has nothing before it: always kept
    if params.min_p > 0.0:
        kept = kept[kept >= params.min_p * kept[0]]
    probabilities.zero_()
    probabilities[ids[: kept.numel()]] = kept


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on (seed, index) alone.

    SplitMix64, Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    z = (seed * 0xD1342543DE82EF95 + (index + 1) * 0x9E3779B97F4A7C15) & _MASK64
    for _ in range(2):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        z ^= z >> 31
    return (z >> 11) / (1 << 53)


def _logprobs(logits: Tensor, sequences: list[Sequence], token_ids: list[int]) -> dict[int, TokenLogprob]:
    """Row -> log-probabilities under the adjusted distribution at temperature 1, for the rows that ask."""
    result = {}
    for row, sequence in enumerate(sequences):
        num_top = sequence.sampling.top_logprobs
        if num_top is None:
            continue
        values = torch.log_softmax(logits[row], dim=-1)
        top_values, top_ids = values.topk(num_top)
        top = list(zip(top_ids.tolist(), top_values.tolist(), strict=True))
        result[row] = TokenLogprob(token_ids[row], values[token_ids[row]].item(), top)
    return result
