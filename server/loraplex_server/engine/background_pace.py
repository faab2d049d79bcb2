"""When sequences in the background begin beside others, whose steps become slower by that."""

from __future__ import annotations

from collections.abc import Callable

from loraplex_server.engine.scheduled_batch import ScheduledBatch

BACKGROUND_EVERY = 150
"""Steps between two that begin a background sequence while others run: fewer than 1 in 100, so that the slower steps
stay beyond the 99th percentile of the times between tokens."""

BACKGROUND_AFTER_S = 5.0
"""… or so long since the last one, where steps are long."""


class BackgroundPace:
    """Owned by the engine's thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._steps_without = BACKGROUND_EVERY
        self._last_s = clock()

    def may_begin(self, batch: ScheduledBatch) -> bool:
        """Whether nobody else runs in this step, or enough steps went by for the few that may be slower."""
        # Those of one step share that it is slower.
        is_one_of_them = any(row.sequence.is_background for row in batch.prefills)
        is_due = self._steps_without >= BACKGROUND_EVERY
        is_due |= self._clock() - self._last_s >= BACKGROUND_AFTER_S
        return batch.num_sequences == 0 or is_one_of_them or is_due

    def has_begun(self) -> None:
        """One of them, in the step that is being made."""
        self._steps_without = 0
        self._last_s = self._clock()

    def count_step(self) -> None:
        """A step was made."""
        self._steps_without += 1
