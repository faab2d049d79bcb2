"""Progress bars on standard error where that is a terminal; elsewhere a plain line for each stage that begins.

rich leaves out colour where NO_COLOR is set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_ESTIMATE_S = 600.0  # what the time left is reckoned from; an optimizer step on a CPU may take minutes

StageProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@contextmanager
def stage_bars(*, are_shown: bool = True) -> Iterator[StageProgress]:
    """One bar per stage, shown from its first report until every stage is complete; nothing without a report."""
    if not are_shown:
        yield lambda stage, done, total: None
        return
    if not sys.stderr.isatty():
        yield _StageLines().report
        return
    bars = _StageBars()
    try:
        yield bars.report
    finally:
        bars.close()


@contextmanager
def counting_bar(text: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar of `total` things, each counted by a call; shown from the start."""
    with stage_bars() as report:
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            report(text, done, total)

        report(text, 0, total)
        yield advance


class _StageLines:
    """For files and pipes, which a bar would leave its remnants in."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def report(self, stage: str, done: int, total: int) -> None:
        if stage not in self._told:
            self._told.add(stage)
            typer.echo(stage, err=True)


class _StageBars:
    """rich's display, begun by the first report and taken down when all is done, so that logs can follow it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def report(self, stage: str, done: int, total: int) -> None:
        if self._progress is None:
            self._progress = _new_progress()
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)
        if self._progress.finished:
            self.close()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=_ESTIMATE_S,
    )


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """For a wait of unknown length."""
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
