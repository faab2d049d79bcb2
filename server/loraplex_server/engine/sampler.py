"""Logits -> one token per row, each row by its own parameters.

Greedy rows without adjustments cost one argmax over the batch. Everything else is done on just the rows that
ask for it. A draw depends on the request's seed and the position alone, never on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from loraplex_server.engine.messages import SamplingParams, TokenLogprob
from loraplex_server.engine.scheduler import SampledToken
from loraplex_server.engine.sequence import Sequence
from loraplex_server.kernels.layer_ops import layer_ops

_MASK64 = (1 << 64) - 1
_MIN_TEMPERATURE = 1e-6  # below it, scaled logits would overflow; it is as good as greedy


class Sampler:
    """Chooses the next token of each row. Stateless but for the end-of-sequence ids."""

    def __init__(self, eos_token_ids: Iterable[int], device: torch.device | None = None) -> None:
        """`device` is where the logits will be; None: the CPU."""
        self._eos_token_ids = tuple(eos_token_ids)
        self._argmax_rows = layer_ops(device or torch.device("cpu"), torch.float32).argmax_rows

    def __call__(self, logits: Tensor, sequences: list[Sequence]) -> list[SampledToken]:
        """logits [rows, vocab] fp32, changed in place; one sequence per row.

        Of equal logits the lowest id wins.
        """
        for row, sequence in enumerate(sequences):
            self._adjust(logits[row], sequence)
        token_ids: list[int] = self._argmax_rows(logits).tolist()
        drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
        if drawn:
            picked = draw(logits[drawn], [sequences[row] for row in drawn])
            for row, token_id in zip(drawn, picked, strict=True):
                token_ids[row] = token_id
        return [
            SampledToken(token_id, _logprob(logits[row], token_id, sequence.sampling.top_logprobs))
            for row, (token_id, sequence) in enumerate(zip(token_ids, sequences, strict=True))
        ]

    def _adjust(self, logits: Tensor, sequence: Sequence) -> None:
        """Bias, penalties and the ban on ending early, on one row [vocab], in place."""
        sampling = sequence.sampling
        if sampling.logit_bias:
            ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
            logits[ids] += torch.tensor(list(sampling.logit_bias.values()), device=logits.device)
        if sampling.depends_on_history:
            _penalize(logits, sequence)
        if len(sequence.output_token_ids) < sampling.min_tokens:
            ends = [*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._eos_token_ids)]
            if ends:
                logits[torch.tensor(ends, device=logits.device)] = -torch.inf


def _penalize(logits: Tensor, sequence: Sequence) -> None:
    """Change the logits of tokens seen so far, on one row [vocab], in place.

    Repetition after CTRL (Keskar et al., 2019): positive logits shrink and negative ones grow, for tokens of
    prompt and completion. Presence costs a constant and frequency one per occurrence, for tokens of the
    completion.
    """
    counts = sequence.token_counts()
    sampling = sequence.sampling
    ids = torch.tensor(list(counts), dtype=torch.int64, device=logits.device)
    times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
    values = logits[ids]
    values = torch.where(
        values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty
    )
    logits[ids] = values - sampling.presence_penalty * (times > 0) - sampling.frequency_penalty * times


def draw(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    """Sample one token per row of adjusted logits [rows, vocab] with temperature > 0.

    Inverse of the cumulative distribution at one uniform number per row; truncated tokens have no mass.
    """
    params = [sequence.sampling for sequence in sequences]
    uniforms = [uniform(s.sampling.seed, len(s.output_token_ids)) for s in sequences]
    temperatures = torch.tensor([max(p.temperature, _MIN_TEMPERATURE) for p in params], device=logits.device)
    probabilities = torch.softmax(logits / temperatures.unsqueeze(1), dim=-1)
    picked = [0] * len(params)
    whole = [row for row, p in enumerate(params) if not _truncates(p)]
    if whole:
        found = _invert(probabilities[whole], [uniforms[row] for row in whole])
        for row, token_id in zip(whole, found, strict=True):
            picked[row] = token_id
    for row, p in enumerate(params):
        if _truncates(p):
            kept, ids = _truncate(probabilities[row], p)
            picked[row] = int(ids[_invert(kept.unsqueeze(0), [uniforms[row]])[0]])
    return picked


def _invert(masses: Tensor, uniforms: list[float]) -> list[int]:
    """Per row of masses [rows, n], the first index whose cumulative mass exceeds uniform × the total."""
    cumulative = masses.cumsum(dim=-1, dtype=torch.float64)
    targets = torch.tensor(uniforms, dtype=torch.float64, device=masses.device) * cumulative[:, -1]
    # "right" finds the first cumulative mass above the target, so a token without mass is never chosen.
    found = torch.searchsorted(cumulative, targets.unsqueeze(1), right=True).squeeze(1)
    indices: list[int] = found.clamp(max=masses.shape[1] - 1).tolist()
    return indices


def _truncates(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _truncate(probabilities: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The kept masses and their token ids: top-k, then top-p of what is left, then min-p. One row [vocab]."""
    if params.top_k == 0 and params.top_p >= 1.0:
        ids = torch.nonzero(probabilities >= params.min_p * probabilities.max()).squeeze(1)
        return probabilities[ids], ids
    kept, ids = _most_likely(probabilities, params)
    if params.top_p < 1.0:
        total = kept.sum() if params.top_k > 0 else probabilities.sum()
        before = kept.cumsum(0) - kept
        before[0] = -1.0  # the most likely token stays, whatever top_p is
        kept = kept[before < params.top_p * total]
    if params.min_p > 0.0:
        kept = kept[kept >= params.min_p * kept[0]]
    return kept, ids[: kept.numel()]


def _most_likely(probabilities: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Masses and ids, best first: top_k of them, or at least as many as top_p keeps."""
    vocab_size = probabilities.numel()
    if params.top_k > 0:
        return probabilities.topk(min(params.top_k, vocab_size))
    # Tokens below (1 - top_p) / vocab have less than 1 - top_p together, so top_p keeps none of them;
    # sorting only the others is much cheaper. The factor is for rounding in float32.
    ids = torch.nonzero(probabilities >= 0.99 * (1.0 - params.top_p) / vocab_size).squeeze(1)
    kept, order = probabilities[ids].sort(descending=True, stable=True)
    return kept, ids[order]


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


def _logprob(logits: Tensor, token_id: int, num_top: int | None) -> TokenLogprob | None:
    """Log-probabilities of one row [vocab] of adjusted logits at temperature 1; None if not asked for."""
    if num_top is None:
        return None
    values, ids = logits.topk(num_top)
    normalizer = torch.logsumexp(logits, dim=-1)
    top = list(zip(ids.tolist(), (values - normalizer).tolist(), strict=True))
    return TokenLogprob(token_id, (logits[token_id] - normalizer).item(), top)
