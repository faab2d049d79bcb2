"""What requests want changed in their logits, on a GPU: bias, penalties and bans of all rows of a step together.

Tokens are counted there as they are sampled, so that a sequence with penalties goes on while its newest token is not
known on the host; see `loraplex_server.kernels.logit_changes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from loraplex_server.engine.count_places import CountPlaces, seen_words
from loraplex_server.engine.messages import AddSequence, SamplingParams
from loraplex_server.engine.pinned_reads import PinnedReads
from loraplex_server.engine.scheduled_batch import ScheduledSequence
from loraplex_server.engine.sequence import Sequence
from loraplex_server.kernels.logit_changes import (
    ENTRIES,
    add_to_logits,
    count_sampled,
    penalize,
    write_words,
)

_Changes = tuple[NDArray[np.int32], NDArray[np.generic]]
"""Tokens, each once, and a number for each."""

_PADDING = -1
_NOBODY = -1  # the id of a sequence that no request has
_NO_CHANGES: _Changes = (np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32))


class GpuLogitChanges:
    """Owns what is counted for sequences with penalties."""

    def __init__(self, table: Tensor, eos_token_ids: Iterable[int], reads: PinnedReads) -> None:
        """table  [places, vocab] int32: a place for each sequence that may run"""
        self._table = table
        self._eos_token_ids = tuple(eos_token_ids)
        self._places = CountPlaces(table.shape[0])
        self._biases: WeakKeyDictionary[Sequence, _Changes] = WeakKeyDictionary()  # they stay what they are
        self._reads = reads
        self._counted: tuple[Tensor, Tensor] | None = None  # rows of the last `apply`, and their places

    def apply(self, logits: Tensor, rows: Iterable[ScheduledSequence]) -> None:
        """Change logits [>= rows, vocab] fp32 in place, in the order of the current stream."""
        added = _Entries(np.int32, np.int32, np.float32)
        written = _Entries(np.int32, np.int32, np.int32)
        penalized = _Entries(np.int32, np.int32, *[np.float32] * 3)
        of_rows: list[tuple[float, ...]] = []
        for index, row in enumerate(rows):
            tokens, values = self._bias_and_bans(row)
            if len(tokens):
                added.add(np.full(len(tokens), index), tokens, values)
            if row.sequence.sampling.depends_on_history:
                of_rows.append((index, self._place_of(row, written), *_strengths(row.sequence.sampling)))
        if of_rows:
            penalized.add(*zip(*of_rows, strict=True))
        self._bring([added, written, penalized])
        if added:
            add_to_logits(logits, *added.on_device)
        if written:
            write_words(self._table, *written.on_device)
        self._counted = None
        if penalized:
            indices, places, repetition, presence, frequency = penalized.on_device
            penalize(logits, self._table, indices, places, repetition, presence, frequency, len(penalized))
            self._counted = indices, places

    def count(self, sampled: Tensor) -> None:
        """What the rows of the last `apply` were given: int64 [>= rows]."""
        if self._counted is not None:
            count_sampled(self._table, *self._counted, sampled)

    def warm_up(self, logits: Tensor, sampled: Tensor) -> None:
        """Launch all that a request can ask for."""
        sampling = SamplingParams(repetition_penalty=1.1, logit_bias={0: 0.0})
        sequence = Sequence.of(AddSequence(_NOBODY, [0], None, b"", sampling, arrival_s=0.0), order=0)
        self.apply(logits, [ScheduledSequence(sequence, 0, 1, True, output_index=0, num_preemptions=0)])
        self.count(sampled)

    def _bias_and_bans(self, row: ScheduledSequence) -> _Changes:
        """Tokens, and what is added to their logits."""
        sampling = row.sequence.sampling
        bias = sampling.logit_bias or {}
        if row.output_index < sampling.min_tokens:
            ends = (*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._eos_token_ids))
            return _arrays({**bias, **dict.fromkeys(ends, -np.inf)}, np.float32)
        if not bias:
            return _NO_CHANGES
        if row.sequence not in self._biases:
            self._biases[row.sequence] = _arrays(bias, np.float32)
        return self._biases[row.sequence]

    def _place_of(self, row: ScheduledSequence, written: _Entries) -> int:
        """Where its tokens are counted; those of a sequence that has begun are yet to be written there."""
        place, is_new = self._places.of(row.sequence)
        if is_new:
            self._table[place].zero_()
            tokens, words = _arrays(seen_words(row), np.int32)
            written.add(np.full(len(tokens), place), tokens, words)
        return place

    def _bring(self, kinds: list[_Entries]) -> None:
        """All of them to the device at once."""
        words = [kind.words() for kind in kinds if kind]
        if not words:
            return
        together = torch.from_numpy(np.concatenate([of_kind.ravel() for of_kind in words]))
        on_device = self._reads.bring(together, self._table.device)
        sizes = [of_kind.size for of_kind in words]
        parts = on_device.split(sizes)  # type: ignore[no-untyped-call]
        for kind, part in zip(filter(len, kinds), parts, strict=True):
            kind.take(part)


class _Entries(Sized):
    """Columns of one kind, gathered row by row; the first one has the numbers of rows or places."""

    def __init__(self, *dtypes: type[np.generic]) -> None:
        self._dtypes = dtypes
        self._parts: list[list[ArrayLike]] = [[] for _ in dtypes]
        self._length = 0
        self.on_device: list[Tensor] = []

    def __len__(self) -> int:
        return self._length

    def add(self, first: NDArray[np.generic] | tuple[float, ...], *others: ArrayLike) -> None:
        """Entries, column by column."""
        for part, column in zip(self._parts, (first, *others), strict=True):
            part.append(column)
        self._length += len(first)

    def words(self) -> NDArray[np.int32]:
        """[columns, entries with padding], floats by their bits."""
        padded = -(-self._length // ENTRIES) * ENTRIES
        words = np.full((len(self._parts), padded), _PADDING, dtype=np.int32)
        for column, part, dtype in zip(words, self._parts, self._dtypes, strict=True):
            np.concatenate(part, out=column[: self._length].view(dtype), casting="same_kind")
        return words

    def take(self, words: Tensor) -> None:
        """`words` on the device, flat."""
        columns = words.view(len(self._dtypes), -1)
        self.on_device = [
            column.view(torch.float32) if dtype is np.float32 else column
            for column, dtype in zip(columns, self._dtypes, strict=True)
        ]


def _strengths(sampling: SamplingParams) -> tuple[float, float, float]:
    return sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty


def _arrays(by_token: Mapping[int, float], dtype: type[np.generic]) -> _Changes:
    """Keys and values."""
    number = len(by_token)
    tokens = np.fromiter(by_token, dtype=np.int32, count=number)
    return tokens, np.fromiter(by_token.values(), dtype=dtype, count=number)
