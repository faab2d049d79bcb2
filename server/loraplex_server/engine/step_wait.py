"""Waits for steps of the device, and meanwhile copies what is read of adapters.

What is read in the course of a step would else be queued between two steps, and its adapter be published a step later,
when that copy is over. So the last piece is in its slot by the time when the next step is scheduled.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from loraplex_server.engine.backend import Step
from loraplex_server.engine.scheduled_batch import SampledToken

_PAUSE_S = 0.0005  # between two looks at what was read; at 20 GB/s 10 MB, which the bus takes 0.2 ms for
_MARGIN_S = 0.0008  # before the end of the step: its tokens are not kept waiting by a pause that lasts a little longer


class Copying(Protocol):
    """See `loraplex_server.engine.adapter_residency`."""

    @property
    def has_copies_to_queue(self) -> bool: ...

    def copy_beside_step(self) -> None: ...


class StepWait:
    """Owned by the engine's thread."""

    def __init__(
        self,
        copying: Copying,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._copying = copying
        self._clock = clock
        self._sleep = sleep
        self._began_s = 0.0  # when the device was done with the step before, as far as is known here
        # Of that step and the one before it. The next one is taken to be as long as the shorter of them: a step with a
        # prompt in it is longer than those around it.
        self._lengths_s = deque([0.0, 0.0], maxlen=2)

    def tokens_of(self, step: Step) -> list[SampledToken]:
        """Of the oldest step in flight, when it is over."""
        self._copy_beside(step, self._began_s + min(self._lengths_s) - _MARGIN_S)
        tokens = step.tokens()
        self._began_s = self._clock()
        self._lengths_s.append(step.device_seconds)
        return tokens

    def _copy_beside(self, step: Step, until_s: float) -> None:
        while self._copying.has_copies_to_queue and not step.is_over:
            left_s = until_s - self._clock()
            if left_s <= 0:
                return
            self._sleep(min(_PAUSE_S, left_s))
            self._copying.copy_beside_step()
