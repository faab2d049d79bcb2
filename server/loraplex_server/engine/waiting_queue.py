"""The sequences that wait, in order of admission; and which adapters they wait for, as the residency is told."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator

from loraplex_server.engine.residency_protocol import AdapterResidency
from loraplex_server.engine.sequence import Sequence


class WaitingQueue:
    """Owned by the engine's thread. An adapter is awaited from the first sequence that names it to the last."""

    def __init__(self, residency: AdapterResidency) -> None:
        self._residency = residency
        self._sequences: list[Sequence] = []  # in order of admission
        self._num_waiting_for: Counter[str] = Counter()  # by digest

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """As of now: who goes or comes meanwhile changes nothing."""
        return iter(list(self._sequences))

    def add(self, sequence: Sequence) -> None:
        """At its place: one that was preempted returns to where it was."""
        insort(self._sequences, sequence, key=lambda one: one.order)
        digest = sequence.adapter_digest
        if digest is not None:
            self._num_waiting_for[digest] += 1
            self._residency.prefetch(digest)

    def remove(self, sequence: Sequence) -> None:
        """It begins, or it has ended."""
        self._sequences.remove(sequence)
        digest = sequence.adapter_digest
        if digest is not None:
            self._num_waiting_for[digest] -= 1
            if not self._num_waiting_for[digest]:
                del self._num_waiting_for[digest]
                self._residency.cancel_prefetch(digest)
