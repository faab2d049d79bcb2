"""How many rows of prompts a step takes in while other sequences decode.

A step takes the longer the more rows it has, and all who decode wait for it. So a prompt is spread over several steps,
as Sarathi-Serve does with its chunked prefills (Agrawal et al., OSDI 2024, https://arxiv.org/abs/2403.02310). There
the rows of a step are a constant; here every prompt asks for a share of its own, so that few prompts make smooth steps
and a deep backlog makes large chunks by itself.

A device pads a step to one of a few numbers of rows, and padding takes as long as prompts in its place: so these get
all the rows that a step has anyway.

What is asked for depends on the tokens that a sequence had to compute when it began, not on those that are left, so
that its end does not recede. A preempted sequence computes its completion so far as well, which counts with its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # settings are read without what the engine needs
    from loraplex_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PrefillSpread:
    """Over how many steps a prompt is spread while others decode."""

    steps: int = 1  # 1: prompts go in whole
    min_rows: int = 8  # of a step, however short the prompts are

    def __post_init__(self) -> None:
        for name in ("steps", "min_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def share(self, num_tokens: int) -> int:
        """Rows of each step for a prompt of which `num_tokens` are to be computed."""
        return -(-num_tokens // self.steps)


WHOLE_PROMPTS = PrefillSpread()

PaddedRows = Callable[[int], int]
"""Rows of a step -> those that it is padded to, no fewer."""


def not_padded(rows: int) -> int:
    """Where a step takes as long as its rows are many."""
    return rows


def prefill_shares(
    spread: PrefillSpread,
    running: Iterable[Sequence],
    waiting: Iterable[Sequence],
    is_loading: Callable[[str], bool],
) -> Iterator[int]:
    """Rows that prompts ask for in each step: those of running sequences, then of those that wait.

    One that waits for a place, for blocks or for a slot counts, since it gets them the sooner the sooner others are
    done. One whose adapter is on its way does not (see `is_loading`, of a digest), nor those in the background; see
    `background_shares`.
    """
    for sequence in running:
        if not (sequence.is_decoding or sequence.is_background):
            yield spread.share(sequence.num_tokens_to_prefill)
    for sequence in waiting:
        digest = sequence.adapter_digest
        if not sequence.is_background and (digest is None or not is_loading(digest)):
            yield spread.share(sequence.num_tokens)


def background_shares(spread: PrefillSpread, running: Iterable[Sequence]) -> int:
    """Rows of each step for running sequences in the background: their shares, and no more since nobody waits."""
    return sum(
        spread.share(sequence.num_tokens_to_prefill)
        for sequence in running
        if sequence.is_background and not sequence.is_decoding
    )


@dataclass(slots=True)
class PrefillBudget:
    """Rows of prompts that one step may take."""

    limit: int  # what the step holds besides its decodes
    spread: PrefillSpread
    wanted: int | None = None  # the sum of all prompts' shares; None: whatever the step holds
    num_prompts: int = 0  # of the sum
    background: int = 0  # rows on top of it
    num_decodes: int = 0  # of the step
    padded_rows: PaddedRows = not_padded
    num_taken: int = 0

    @classmethod
    def whole(cls, limit: int) -> PrefillBudget:
        """Of a step that takes whatever it holds."""
        return cls(limit, WHOLE_PROMPTS)

    @classmethod
    def shared(
        cls,
        limit: int,
        spread: PrefillSpread,
        shares: Iterable[int],
        background: int = 0,
        num_decodes: int = 0,
        padded_rows: PaddedRows = not_padded,
    ) -> PrefillBudget:
        """Of a step that others decode in. The prompts' `shares` are read only until they fill the step.

        They go in one behind the other, so with the sum of their shares the last of n prompts would be done in
        1 + 1/2 + ... + 1/n spreads: n times the sum makes it less than two, however many they are.
        """
        wanted = 0
        num_prompts = 0
        for num_prompts, share in enumerate(shares, start=1):
            wanted += share
            if wanted * num_prompts >= limit:
                return cls(limit, spread)  # whole, but for what runs in the background
        return cls(limit, spread, wanted, num_prompts, background, num_decodes, padded_rows)

    @property
    def left(self) -> int:
        """Rows that may still be taken, never beyond the limit."""
        rows = self.limit
        if self.wanted is not None:
            rows = max(self.spread.min_rows, self.wanted * self.num_prompts + self.background)
            rows = self.padded_rows(self.num_decodes + rows) - self.num_decodes
        return max(0, min(self.limit, rows) - self.num_taken)

    def correct(self, sequence: Sequence) -> None:
        """One begins, so that it is known how much of it is in the cache: its share was of all its tokens."""
        if self.wanted is not None and not sequence.is_background:
            share = self.spread.share
            self.wanted += share(sequence.num_tokens_to_prefill) - share(sequence.num_tokens)

    def chunk_of(self, sequence: Sequence) -> int:
        """Rows that a sequence gets where some are `left`: all that it needs of them.

        In the background it gets no more than its share, so that nobody behind it waits for it to end.
        """
        missing = sequence.num_tokens - sequence.num_computed_tokens
        if sequence.is_background:
            missing = min(missing, self.spread.share(sequence.num_tokens_to_prefill))
        return min(missing, max(1, self.left))
