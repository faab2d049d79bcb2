"""Of what a process reports, callers see all that matters, and nothing that JSON or their eyes cannot take."""

from __future__ import annotations

import math
from pathlib import Path

from loraplex_server.metrics import Metrics
from loraplex_server.training.event_log import EventLog, JobEvent
from loraplex_server.training.event_recorder import EventRecorder
from loraplex_server.training.jobs import Progress
from loraplex_server.training.messages import Measured, Report, Said, StageBegan, StepDone


class Recorded:
    """A recorder on a clock that the test sets."""

    def __init__(self, log: EventLog) -> None:
        self.now_s = 0.0
        self.log = log
        self.metrics = Metrics()
        self.recorder = EventRecorder(log, self.metrics, lambda: self.now_s)

    async def take(self, *reports: Report) -> list[JobEvent]:
        for report in reports:
            await self.recorder.take(report)
        return [event async for event in self.log.follow(0)]

    def metric(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


async def recorded(tmp_path: Path) -> Recorded:
    return Recorded(await EventLog.open(tmp_path / "events.jsonl"))


async def test_quick_steps_are_told_twice_a_second_and_the_last_one_always(tmp_path: Path) -> None:
    case = await recorded(tmp_path)
    events: list[JobEvent] = []
    for step in range(1, 101):
        case.now_s += 0.0625
        events = await case.take(StepDone("train", step, 100, loss=1.0, paused_s=0.5))

    assert [event.step for event in events] == [*range(1, 100, 8), 100]
    assert case.metric("loraplex_training_steps_total") == 100
    assert case.metric("loraplex_training_pause_seconds_total") == 50


async def test_progress_is_that_of_the_newest_report(tmp_path: Path) -> None:
    case = await recorded(tmp_path)

    await case.take(StageBegan("train"), StepDone("train", 3, 9, loss=0.5, eta_s=6.0))
    assert case.recorder.progress == Progress("train", 3, 9, 0.5, 6.0)
    await case.take(StageBegan("gate"))
    assert case.recorder.progress == Progress("gate")


async def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    case = await recorded(tmp_path)

    step, metrics = await case.take(
        StepDone("train", 1, 1, loss=math.nan), Measured("train", {"a": math.inf, "b": 1.0})
    )

    assert step.values == {}
    assert metrics.values == {"b": 1.0}
    assert case.recorder.progress.loss is None


async def test_a_text_without_end_is_cut(tmp_path: Path) -> None:
    case = await recorded(tmp_path)

    said, warned = await case.take(Said("x" * 10_000), Said("careful", "data", is_warning=True))

    assert len(said.text) == 2000
    assert (said.kind, warned.kind, warned.stage) == ("log", "warning", "data")
