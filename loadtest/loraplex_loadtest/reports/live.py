"""The run as it goes, in a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loraplex_loadtest.disturbances.actions import Happening
from loraplex_loadtest.reports.text import seconds_text
from loraplex_loadtest.run import Watcher
from loraplex_loadtest.running.order import SNAPSHOT_EVERY_S, Snapshot
from loraplex_loadtest.scenario import BASE
from loraplex_loadtest.workload.plan import Plan

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_WIDTH = 48
_BARS = " ▁▂▃▄▅▆▇█"
_MAX_ADAPTERS = 8
_MAX_EVENTS = 4


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """The last `width` values as bars, the largest full; NaN is a gap."""
    shown = list(values)[-width:]
    top = max((value for value in shown if value == value), default=0.0)
    if not top:
        return "▁" * len(shown)
    return "".join(
        " " if value != value else _BARS[max(1, min(8, round(value / top * 8)))] for value in shown
    )


class LiveView(Watcher):
    """Redrawn with every snapshot. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._plan: Plan | None = None
        self._text = "asking the server"
        self._rates: deque[float] = deque(maxlen=_WIDTH)
        self._tokens: deque[float] = deque(maxlen=_WIDTH)
        self._running: deque[float] = deque(maxlen=_WIDTH)
        self._ttft: deque[float] = deque(maxlen=_WIDTH)
        self._before = (0.0, 0, 0)

    def __enter__(self) -> LiveView:
        from rich.live import Live

        self._live = Live(self._status(), console=self._console, refresh_per_second=4, transient=True)
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def on_setup(self, done: int, total: int) -> None:
        self._text = f"registering adapters: {done} of {total}"
        self._draw(self._status())

    def on_start(self, plan: Plan) -> None:
        self._plan = plan
        self._text = f"{len(plan.requests)} requests planned"
        self._draw(self._status())

    def on_progress(self, snapshots: Sequence[Snapshot], happened: Sequence[Happening]) -> bool:
        self._add(snapshots)
        self._draw(self.view(snapshots, happened))
        return False

    def view(self, snapshots: Sequence[Snapshot], happened: Sequence[Happening]) -> RenderableType:
        """The whole picture."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        lines = Table.grid(padding=(0, 2))
        ttft = [value for value in self._ttft if value == value]
        for label, values, now in (
            ("requests/s", self._rates, f"{self._last(self._rates):.1f}"),
            ("tokens/s", self._tokens, f"{self._last(self._tokens):.0f}"),
            ("in flight", self._running, f"{self._last(self._running):.0f}"),
            ("TTFT", self._ttft, seconds_text(ttft[-1]) if ttft else ""),
        ):
            lines.add_row(label, Text(sparkline(values), style="cyan"), now)
        ended: dict[str, int] = {}
        for one in snapshots:
            for name, count in one.adapters.items():
                ended[name or BASE] = ended.get(name or BASE, 0) + count
        adapters = Table.grid(padding=(0, 2))
        top = max(ended.values(), default=1)
        for name, count in sorted(ended.items(), key=lambda pair: -pair[1])[:_MAX_ADAPTERS]:
            adapters.add_row(name, Text("█" * max(1, round(count / top * 24)), style="green"), str(count))
        events = [
            Text(f"{one.began_s:6.1f} s  {one.kind}  {one.told}", style="red" if one.is_failure else "yellow")
            for one in list(happened)[-_MAX_EVENTS:]
        ]
        return Panel(Group(lines, "", adapters, *events), title=self._title(snapshots), title_align="left")

    def _title(self, snapshots: Sequence[Snapshot]) -> str:
        at_s = max((one.at_s for one in snapshots), default=0.0)
        errors = sum(one.errors for one in snapshots)
        ended = sum(one.ended for one in snapshots)
        name = self._plan.scenario.name if self._plan else ""
        until = f" of {self._plan.duration_s:.0f}" if self._plan else ""
        return f"{name}  {at_s:.0f}{until} s  {ended} ended, {errors} failed"

    def _add(self, snapshots: Sequence[Snapshot]) -> None:
        at_s = max(one.at_s for one in snapshots)
        started, tokens = sum(one.started for one in snapshots), sum(one.tokens for one in snapshots)
        before_s, before_started, before_tokens = self._before
        seconds = max(at_s - before_s, SNAPSHOT_EVERY_S / 10)
        self._rates.append((started - before_started) / seconds)
        self._tokens.append((tokens - before_tokens) / seconds)
        self._running.append(sum(one.in_flight for one in snapshots))
        first = [value for one in snapshots for value in one.ttft_s]
        self._ttft.append(float(np.median(first)) if first else float("nan"))
        self._before = (at_s, started, tokens)

    def _status(self) -> RenderableType:
        from rich.text import Text

        return Text(self._text)

    def _draw(self, what: RenderableType) -> None:
        if self._live is not None:
            self._live.update(what)

    @staticmethod
    def _last(values: deque[float]) -> float:
        return values[-1] if values else 0.0
