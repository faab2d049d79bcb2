"""Makes events, progress and metrics of what a job's process reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from loraplex_server.metrics import Metrics
from loraplex_server.training.event_log import EventDraft, EventLog
from loraplex_server.training.jobs import Progress
from loraplex_server.training.messages import MAX_TEXT, Measured, Report, Said, StageBegan, StepDone

_STEP_EVENTS_APART_S = 0.5
_MAX_VALUES = 64


class EventRecorder:
    """Of one attempt. Owned by the event loop."""

    def __init__(
        self, events: EventLog, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._events = events
        self._metrics = metrics
        self._clock = clock
        self._step_told_s = -math.inf
        self.progress = Progress()

    async def take(self, report: Report) -> None:
        """Record one report."""
        match report:
            case StageBegan(stage=stage):
                self.progress = Progress(stage)
                self._step_told_s = -math.inf
                await self._events.append(EventDraft(kind="stage", stage=stage))
            case StepDone():
                await self._take_step(report)
            case Measured(stage=stage, values=values, text=text):
                draft = EventDraft(kind="metrics", stage=stage, values=_finite(values), text=text[:MAX_TEXT])
                await self._events.append(draft)
            case Said(text=text, stage=stage, is_warning=is_warning):
                kind = "warning" if is_warning else "log"
                await self._events.append(EventDraft(kind=kind, stage=stage, text=text[:MAX_TEXT]))

    async def _take_step(self, report: StepDone) -> None:
        num_steps = max(0, report.num_steps)
        loss = report.loss if report.loss is not None and math.isfinite(report.loss) else None
        step = max(0, report.step)
        self.progress = Progress(report.stage, step, num_steps, loss, report.eta_s)
        self._metrics.training_step(max(0.0, report.paused_s), is_optimizer_step=loss is not None)
        now_s = self._clock()
        if now_s - self._step_told_s < _STEP_EVENTS_APART_S and step < num_steps:
            return
        self._step_told_s = now_s
        values = {
            "loss": report.loss,
            "tokens_per_second": report.tokens_per_s,
            "eta_seconds": report.eta_s,
        }
        known = {name: value for name, value in values.items() if value is not None}
        draft = EventDraft(
            kind="step", stage=report.stage, step=step, num_steps=num_steps, values=_finite(known)
        )
        await self._events.append(draft)


def _finite(values: dict[str, float]) -> dict[str, float]:
    """JSON knows no infinity."""
    return {name: value for name, value in list(values.items())[:_MAX_VALUES] if math.isfinite(value)}
