"""Logits -> one token per row, each row by its own parameters.

Greedy rows without adjustments cost one argmax over the batch. Everything else is done on just the rows that
ask for it. A draw depends on the request's seed and the position alone, never on what else is in the batch; and it
hardly ever changes with the rounding of the logits, which does depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from loraplex_server.engine.messages import SamplingParams, TokenLogprob
from loraplex_server.engine.scheduled_batch import NO_TOKEN, SampledToken
from loraplex_server.engine.sequence import Sequence

_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
_MIN_TEMPERATURE = 1e-6  # below it, scaled logits would overflow; it is as good as greedy


def _argmax_rows(logits: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


class Sampler:
    """Chooses the next token of each row. Stateless but for the end-of-sequence ids."""

    def __init__(
        self,
        eos_token_ids: Iterable[int],
        argmax_rows: Callable[[Tensor], Tensor] = _argmax_rows,
    ) -> None:
        """argmax_rows  [rows, vocab] -> [rows] int64, of equals the first; see `LayerOps.argmax_rows`."""
        self._eos_token_ids = tuple(eos_token_ids)
        self._argmax_rows = argmax_rows

    def __call__(self, logits: Tensor, sequences: list[Sequence]) -> list[SampledToken]:
        """logits [rows, vocab] fp32, changed in place; one sequence per row.

        Of equal logits the lowest id wins. Where one is no number, no token does (NO_TOKEN).
        """
        for row, sequence in enumerate(sequences):
            self.adjust(logits[row], sequence, len(sequence.output_token_ids))
        are_numbers = logits.amax(dim=1).isnan().logical_not().tolist()
        rows = [row for row in range(len(sequences)) if are_numbers[row]]
        drawn = [row for row in rows if sequences[row].sampling.temperature > 0]
        greedy = [row for row in rows if sequences[row].sampling.temperature <= 0]
        token_ids: dict[int, int] = {}
        if greedy:
            chosen = logits[greedy] if len(greedy) < len(sequences) else logits
            token_ids.update(zip(greedy, self._argmax_rows(chosen).tolist(), strict=True))
        if drawn:
            chosen = logits[drawn] if len(drawn) < len(sequences) else logits
            token_ids.update(zip(drawn, draw(chosen, [sequences[row] for row in drawn]), strict=True))
        return [
            SampledToken(
                token_ids[row], _logprob(logits[row], token_ids[row], sequence.sampling.top_logprobs)
            )
            if are_numbers[row]
            else SampledToken(NO_TOKEN)
            for row, sequence in enumerate(sequences)
        ]

    def adjust(self, logits: Tensor, sequence: Sequence, num_output: int) -> None:
        """Bias, penalties and the ban on ending early, on one row [vocab], in place.

        num_output  tokens of the completion before the one that is chosen, pending ones included
        """
        sampling = sequence.sampling
        if sampling.logit_bias:
            ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
            logits[ids] += torch.tensor(list(sampling.logit_bias.values()), device=logits.device)
        if sampling.depends_on_history:
            _penalize(logits, sequence)
        if num_output < sampling.min_tokens:
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

    A race: token i arrives after E_i / p_i with E_i ~ Exp(1), and i is the first with probability p_i. Rounding moves
    the winner only where two arrive at almost the same time. (Inverting the cumulative distribution at one uniform
    number would be cheaper, but there every token shifts the limits of all after it: with 49152 tokens in fp32, one
    draw in a thousand changed with the batch.)
    """
    temperatures = [max(sequence.sampling.temperature, _MIN_TEMPERATURE) for sequence in sequences]
    scaled = logits / torch.tensor(temperatures, device=logits.device).unsqueeze(1)
    all_ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    picked = []
    for probabilities, sequence in zip(torch.softmax(scaled, dim=-1), sequences, strict=True):
        ids = all_ids
        if _truncates(sequence.sampling):
            probabilities, ids = _truncate(probabilities, sequence.sampling)
        delays = exponentials(sequence.sampling.seed, len(sequence.output_token_ids), ids)
        picked.append(int(ids[(probabilities / delays).argmax()]))
    return picked


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
    """Masses and ids, best first and of equals the lowest id: top_k, or at least as many as top_p keeps."""
    vocab_size = probabilities.numel()
    if params.top_k > 0:
        # Which of the equals at the end are among the k, topk leaves open.
        least = probabilities.topk(min(params.top_k, vocab_size)).values[-1]
    else:
        # Tokens below (1 - top_p) / vocab have less than 1 - top_p together, so top_p keeps none of them;
        # sorting only the others is much cheaper. The factor is for rounding in float32.
        least = torch.tensor(0.99 * (1.0 - params.top_p) / vocab_size)
    ids = torch.nonzero(probabilities >= least).squeeze(1)
    kept, order = probabilities[ids].sort(descending=True, stable=True)
    count = params.top_k or kept.numel()
    return kept[:count], ids[order[:count]]


def exponentials(seed: int, index: int, ids: Tensor) -> Tensor:
    """For each of ids [n], a number with distribution Exp(1) that depends on (seed, index, id) alone; [n] fp32.

    The ids are hashed under a key of 64 bits in two rounds of multiplication and shift, in 32-bit integers that wrap.
    """
    key = _mixed64(seed * 0xD1342543DE82EF95 + (index + 1) * 0x9E3779B97F4A7C15)
    x = ids.to(torch.int32) * _signed32(0x9E3779B1)
    x.add_(_signed32(key)).bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    x.mul_(0x7FEB352D).bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF))
    x.add_(_signed32(key >> 32)).mul_(_signed32(0x846CA68B)).bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    # In (0, 1), exact near 0, where the winners of the race come from.
    uniform = x.bitwise_and_(0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_()


def _mixed64(z: int) -> int:
    """SplitMix64, Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014."""
    z &= _MASK64
    for _ in range(2):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        z ^= z >> 31
    return z


def _signed32(value: int) -> int:
    """The int32 with the low 32 bits of `value`."""
    low = value & _MASK32
    return low - (1 << 32) if low >> 31 else low


def _logprob(logits: Tensor, token_id: int, num_top: int | None) -> TokenLogprob | None:
    """Log-probabilities of one row [vocab] of adjusted logits at temperature 1; None if not asked for."""
    if num_top is None:
        return None
    values, ids = logits.topk(num_top)
    normalizer = torch.logsumexp(logits, dim=-1)
    top = list(zip(ids.tolist(), (values - normalizer).tolist(), strict=True))
    return TokenLogprob(token_id, (logits[token_id] - normalizer).item(), top)
