"""A run's folder from its opening to its report: what a run of one adapter and one of several share."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from loraplex_trainer.errors import RunFolderError, TrainingStorageError
from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe, dump_recipe
from loraplex_trainer.train.events import Finished, Log, TrainEvent
from loraplex_trainer.train.report import StageReport, TrainReport, make_report
from loraplex_trainer.train.report_page import write_report
from loraplex_trainer.train.run_folder import RunFolder, RunState, write_json, write_text

if TYPE_CHECKING:
    from loraplex_trainer.data.built import BuiltData

_SPARE_BYTES = 64 * 2**20  # for logs, metrics, samples, report
_NUM_CHECKPOINTS = 3  # the best one, the last, and the next while it is written
_STATUS_OF = {"done": "finished", "paused": "paused", "cancelled": "cancelled"}


class OpenedRun:
    """One process's part of a run. After `prepare`: `recipe` (resolved), `plan`, `stages`, `tokenizer`, `preflight`."""

    def __init__(
        self,
        recipe: Recipe,
        recipe_folder: Path,
        run: RunFolder,
        base_folder: Path,
        emit: Callable[[TrainEvent], None],
    ) -> None:
        self.run = run
        self.base = base_folder
        self.emit = emit
        self.is_resumed = False
        self._given = recipe
        self._recipe_folder = recipe_folder
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._peak_before = 0
        self._was_finished = False

    def open(self, resume: bool) -> None:
        """Take the folder, for a new run or for one that goes on. Raises RunFolderError."""
        if not resume:
            if self.run.is_begun:
                raise RunFolderError(
                    f"'{self.run.path.name}' already holds a run; go on with --resume, or give another --output"
                )
            self.run.path.mkdir(parents=True, exist_ok=True)
            write_text(self.run.recipe, dump_recipe(self._given))
            self.run.write_state(RunState("running", "", 0, self._given.sha256(), ""))
            return
        state = self.run.read_state()
        if state.recipe_sha256 != self._given.sha256():
            raise RunFolderError(
                "the recipe is not the one that this run began with; resume with the run folder's recipe.yaml, "
                "or start a new run"
            )
        self.is_resumed = True
        self._seconds_before = state.seconds
        self._peak_before = self._reported_peak()
        self._was_finished = state.status == "finished"
        self.run.write_state(RunState(**{**asdict(state), "status": "running", "message": ""}))

    def prepare(self, plan: TrainingPlan | None, data: BuiltData | None) -> None:
        """Tokenizer, data, plan, resolved recipe, preflight. Raises whatever is wrong with them."""
        from loraplex_trainer.base_model import load_tokenizer
        from loraplex_trainer.plan.resolve import resolve
        from loraplex_trainer.train.inputs import plan_for, stages_of
        from loraplex_trainer.train.preflight import preflight

        self.tokenizer = load_tokenizer(self.base)
        self.stages, data_sha256, self.warnings = stages_of(
            self._given, self._recipe_folder, self.run, self.tokenizer, data, self._say_progress
        )
        state = self.run.read_state()
        if self.is_resumed and state.data_sha256 not in ("", data_sha256):
            raise RunFolderError("the data is not what this run began with; start a new run")
        self.run.change_state(data_sha256=data_sha256)
        rows = [row for stage in self.stages for row in (*stage.train, *stage.val)]
        limit = self._given.data.max_length
        self.preflight, tokens = preflight(rows, self.tokenizer, self._given.system, limit, self.base)
        self.plan = plan or plan_for(self._given, self.base, tokens)
        self.recipe = resolve(self._given, self.plan)
        write_json(self.run.plan, asdict(self.plan))
        write_text(self.run.resolved, dump_recipe(self.recipe))
        self.warnings += self.preflight.warnings
        for warning in self.warnings:
            self.emit(Log(f"warning: {warning}"))
        self._check_room()

    def finish(self, reports: Sequence[StageReport], peak_bytes: int) -> TrainReport:
        """Write the report, and the status that the last stage's end gives the run."""
        status = _STATUS_OF[reports[-1].end]
        report = make_report(
            self.run,
            status,
            self.recipe,
            self.plan,
            reports,
            recipe_sha256=self._given.sha256(),
            data_sha256=self.run.read_state().data_sha256,
            preflight=self.preflight,
            warnings=self.warnings,
            seconds=self._seconds(),
            # A resumed process may have loaded the base and trained nothing.
            peak_memory_bytes=max(peak_bytes, self._peak_before),
        )
        write_report(self.run, report)
        self.run.change_state(status=status, seconds=self._seconds())
        self.emit(Finished(report.status, self.run.path))
        return report

    def note_failure(self, error: BaseException) -> None:
        """Leave the reason in the state, as far as the disk takes it. What is finished stays so."""
        status = "cancelled" if isinstance(error, KeyboardInterrupt) else "failed"
        if self._was_finished:
            status = "finished"
        with contextlib.suppress(OSError, RunFolderError):
            self.run.change_state(status=status, message=str(error)[:500], seconds=self._seconds())

    def stage_reports(self) -> list[StageReport]:
        """Of the stages that an earlier process has done."""
        done = self.run.read_state().stages_done
        if not done:
            return []
        documents = json.loads((self.run.checkpoints / "stages.json").read_text(encoding="utf-8"))
        return [StageReport(**{**d, "alarms": tuple(d["alarms"])}) for d in documents[:done]]

    def _reported_peak(self) -> int:
        """Of the processes before this one; 0 where none of them came to a report."""
        try:
            return int(json.loads(self.run.report.read_text(encoding="utf-8"))["peak_memory_bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _seconds(self) -> float:
        return round(self._seconds_before + time.monotonic() - self._started, 2)

    def _say_progress(self, what: str, done: int, total: int) -> None:
        if done == total:
            self.emit(Log(f"{what}: {total}"))

    def _check_room(self) -> None:
        from loraplex_trainer.train.adapter import checkpoint_bytes

        needed = _NUM_CHECKPOINTS * checkpoint_bytes(self.plan) + _SPARE_BYTES
        free = shutil.disk_usage(self.run.path).free
        if free < needed:
            raise TrainingStorageError(
                f"the run folder's disk has {free / 2**20:.0f} MiB left, and a run of this size needs "
                f"{needed / 2**20:.0f} MiB; make room, or choose another --output"
            )
