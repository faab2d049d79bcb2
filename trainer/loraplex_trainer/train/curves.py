"""The curves of a run, read back from metrics.jsonl, so that a resumed run shows all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loraplex_trainer.train.run_folder import RunFolder, read_lines


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines of metrics.jsonl, oldest first."""

    lines: tuple[dict[str, Any], ...]

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one scalar."""
        return [(line["step"], line[name]) for line in self.lines if name in line]

    def values(self, name: str) -> list[float]:
        """The values of one scalar."""
        return [value for _, value in self.points(name)]

    def last(self, name: str) -> float | None:
        """The newest value; None where there is none."""
        values = self.values(name)
        return values[-1] if values else None

    def of_stage(self, stage: str) -> Curves:
        """The part of one stage."""
        return Curves(tuple(line for line in self.lines if line["stage"] == stage))


def read_curves(run: RunFolder) -> Curves:
    """All that the run has written."""
    return Curves(tuple(read_lines(run.metrics)))
