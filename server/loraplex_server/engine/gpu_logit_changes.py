"""What requests want changed in their logits, on a GPU: bias, penalties and bans of all rows of a step together.

Tokens are counted there as they are sampled, so that a sequence with penalties goes on while its newest token is not
known on the host; see `loraplex_server.kernels.logit_changes`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sized

import numpy as np
import torch
from numpy.typing import NDArray
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

_PADDING = -1
_NOBODY = -1  # the id of a sequence that no request has


class GpuLogitChanges:
    """Owns what is counted for sequences with penalties."""

    def __init__(self, table: Tensor, eos_token_ids: Iterable[int], reads: PinnedReads) -> None:
        """table  [places, vocab] int32: a place for each sequence that may run"""
        self._table = table
        self._eos_token_ids = tuple(eos_token_ids)
        self._places = CountPlaces(table.shape[0])
        self._reads = reads
        self._counted: tuple[Tensor, Tensor] | None = None  # rows of the last `apply`, and their places

    def apply(self, logits: Tensor, rows: Iterable[ScheduledSequence]) -> None:
        """Change logits [>= rows, vocab] fp32 in place, in the order of the current stream."""
        added = _Entries(np.int32, np.int32, np.float32)
        written = _Entries(np.int32, np.int32, np.int32)
        penalized = _Entries(np.int32, np.int32, *[np.float32] * 3)
        for index, row in enumerate(rows):
            changes = self._bias_and_bans(row)
            if changes:
                added.add(index, changes, changes.values())
            if row.sequence.sampling.depends_on_history:
                place = self._place_of(row, written)
                penalized.add(index, [place], *_strengths(row.sequence.sampling))
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

    def _bias_and_bans(self, row: ScheduledSequence) -> dict[int, float]:
        """Token -> what is added to its logit."""
        sampling = row.sequence.sampling
        added = dict(sampling.logit_bias or {})
        if row.output_index < sampling.min_tokens:
            ends = (*sampling.stop_token_ids, *(() if sampling.ignore_eos else self._eos_token_ids))
            added |= dict.fromkeys(ends, -np.inf)
        return added

    def _place_of(self, row: ScheduledSequence, written: _Entries) -> int:
        """Where its tokens are counted; those of a sequence that has begun are yet to be written there."""
        place, is_new = self._places.of(row.sequence)
        if is_new:
            words = seen_words(row)
            self._table[place].zero_()
            written.add(place, words, words.values())
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
    """Columns of one kind, gathered row by row; the first one has the number of a row or place."""

    def __init__(self, *dtypes: type[np.generic]) -> None:
        self._dtypes = dtypes
        self._columns: list[list[float]] = [[] for _ in dtypes]
        self.on_device: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, number: int, *columns: Collection[float]) -> None:
        """Entries of one row or place."""
        for column, more in zip(self._columns, ([number] * len(columns[0]), *columns), strict=True):
            column += more

    def words(self) -> NDArray[np.int32]:
        """[columns, entries with padding], floats by their bits."""
        padded = -(-len(self) // ENTRIES) * ENTRIES
        words = np.full((len(self._columns), padded), _PADDING, dtype=np.int32)
        for of_column, column, dtype in zip(words, self._columns, self._dtypes, strict=True):
            of_column[: len(column)] = np.array(column, dtype=dtype).view(np.int32)
        return words

    def take(self, words: Tensor) -> None:
        """`words` on the device, flat."""
        columns = words.view(len(self._dtypes), -1)
        self.on_device = [
            column.view(torch.float32) if dtype is np.float32 else column
            for column, dtype in zip(columns, self._dtypes, strict=True)
        ]


def _strengths(sampling: SamplingParams) -> tuple[list[float], list[float], list[float]]:
    return [sampling.repetition_penalty], [sampling.presence_penalty], [sampling.frequency_penalty]
