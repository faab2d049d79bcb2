"""Where the tokens of sequences with penalties are counted on a GPU."""

from __future__ import annotations

from weakref import ReferenceType, ref

from loraplex_server.engine.scheduled_batch import ScheduledSequence
from loraplex_server.engine.sequence import Sequence
from loraplex_server.kernels.logit_changes import OCCURRENCE, SEEN


class CountPlaces:
    """Which sequence has which place.

    Nobody says when a sequence ends: its place goes to another one once it holds no blocks. A preempted one that finds
    its place taken when it goes on gets a new one.
    """

    def __init__(self, number: int) -> None:
        """`number` of sequences that may run."""
        self._owners: list[ReferenceType[Sequence] | None] = [None] * number
        self._place_of: dict[int, int] = {}

    def of(self, sequence: Sequence) -> tuple[int, bool]:
        """The place of a running sequence, and whether it is new to it."""
        place = self._place_of.get(sequence.sequence_id)
        if place is not None:
            return place, False
        place = next(place for place, owner in enumerate(self._owners) if not _is_running(owner))
        self._place_of = {other: taken for other, taken in self._place_of.items() if taken != place}
        self._owners[place] = ref(sequence)
        self._place_of[sequence.sequence_id] = place
        return place, True


def _is_running(owner: ReferenceType[Sequence] | None) -> bool:
    sequence = None if owner is None else owner()
    return sequence is not None and bool(sequence.block_table)


def seen_words(row: ScheduledSequence) -> dict[int, int]:
    """Token -> its word in the table, of all tokens before the one that is sampled.

    Of a sequence that begins, or begins again, none is pending, so all are known.
    """
    sequence = row.sequence
    assert len(sequence.output_token_ids) == row.output_index, "a token is pending that was not counted"
    words = dict.fromkeys(sequence.prompt_token_ids, SEEN)
    for token_id in sequence.output_token_ids:
        words[token_id] = words.get(token_id, SEEN) + OCCURRENCE
    return words
