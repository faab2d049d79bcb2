"""What requests want changed in their logits, for all rows of a step together: bias, penalties, bans, in this order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loraplex_server.engine.messages import SamplingParams

Bring = Callable[[Tensor, torch.device], Tensor]
"""int32 [n] on the host -> the same on a device, in the order of its current stream."""

_Words = NDArray[np.int32]


class LogitChanges:
    """Gathered row by row, applied at once. A row and token occur once in each of the three."""

    def __init__(self) -> None:
        self._biases: list[tuple[_Words, ...]] = []  # row, token, what is added
        self._penalties: list[
            tuple[_Words, ...]
        ] = []  # row, token, occurrences, repetition, presence, frequency
        self._bans: list[tuple[_Words, ...]] = []  # row, token

    def bias(self, row: int, values: Mapping[int, float]) -> None:
        """Add a value to the logits of each token."""
        self._biases.append((*_places(row, values), _floats(values.values(), len(values))))

    def penalize(self, row: int, counts: Mapping[int, int], sampling: SamplingParams) -> None:
        """Change the logits of tokens seen so far; `counts` are their occurrences in the completion.

        Repetition after CTRL (Keskar et al., 2019): positive logits shrink and negative ones grow, for tokens of
        prompt and completion. Presence costs a constant and frequency one per occurrence, for tokens of the
        completion.
        """
        strengths = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        number = len(counts)
        same = (_floats((strength,), 1).repeat(number) for strength in strengths)
        self._penalties.append((*_places(row, counts), _floats(counts.values(), number), *same))

    def ban(self, row: int, token_ids: Iterable[int]) -> None:
        """Leave no chance to tokens."""
        self._bans.append(_places(row, dict.fromkeys(token_ids)))

    def apply(self, logits: Tensor, bring: Bring) -> None:
        """Change logits [rows, vocab] fp32 in place."""
        groups = [self._biases, self._penalties, self._bans]
        columns = [[np.concatenate(column) for column in zip(*group, strict=True)] for group in groups]
        words = [column for group in columns for column in group]
        if not words:
            return
        on_device = iter(
            bring(torch.from_numpy(np.concatenate(words)), logits.device).split([len(w) for w in words])  # type: ignore[no-untyped-call]
        )
        biases, penalties, bans = ([next(on_device) for _ in group] for group in columns)
        if biases:
            rows, ids, added = biases
            logits[rows, ids] += added.view(torch.float32)
        if penalties:
            rows, ids, *numbers = penalties
            logits[rows, ids] = _penalized(
                logits[rows, ids], *(column.view(torch.float32) for column in numbers)
            )
        if bans:
            rows, ids = bans
            logits[rows, ids] = -torch.inf


def _penalized(
    values: Tensor, times: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    values = torch.where(values > 0, values / repetition, values * repetition)
    return values - presence * (times > 0) - frequency * times


def _places(row: int, token_ids: Mapping[int, object]) -> tuple[_Words, _Words]:
    number = len(token_ids)
    return np.full(number, row, dtype=np.int32), np.fromiter(token_ids, dtype=np.int32, count=number)


def _floats(values: Iterable[float], number: int) -> _Words:
    """As words that hold their bits."""
    return np.fromiter(values, dtype=np.float32, count=number).view(np.int32)
