"""Trains one adapter: from recipe, data and plan to a run folder with the best adapter and a report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraplex_trainer.errors import RunFolderError, TrainingStorageError
from loraplex_trainer.libraries import prepare_libraries
from loraplex_trainer.plan.training_plan import TrainingPlan
from loraplex_trainer.recipe.document import Recipe, dump_recipe
from loraplex_trainer.train.events import Finished, Log, StageStarted, TrainEvent
from loraplex_trainer.train.report import TrainReport, write_report
from loraplex_trainer.train.run_folder import RunFolder, RunState, storage_faults, write_json, write_text

if TYPE_CHECKING:
    from loraplex_trainer.data.built import BuiltData
    from loraplex_trainer.train.stage_run import StageReport

_SPARE_BYTES = 64 * 2**20  # for logs, metrics, samples, report
_NUM_CHECKPOINTS = 3  # the best one, the last, and the next while it is written


def train(
    recipe: Recipe,
    recipe_folder: Path,
    run_folder: Path,
    base_folder: Path,
    *,
    plan: TrainingPlan | None = None,
    data: BuiltData | None = None,
    resume: bool = False,
    on_event: Callable[[TrainEvent], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    wait_turn: Callable[[], None] | None = None,
) -> TrainReport:
    """Train into `run_folder`. Data is built, and the plan made, where they are not given.

    resume       go on after the newest whole checkpoint, as if nothing had happened; recipe and data must be the same
    should_stop  asked between optimizer steps; the report then says "cancelled", and the run can be resumed
    wait_turn    called between optimizer steps; returns when the next one may begin

    The same recipe, data and seed give the same bytes on one CPU; on a GPU, nearly. Raises RecipeError,
    TrainingDataError, DoesNotFitError, RunFolderError, TrainingDivergedError, TrainingStorageError, BaseModelError.
    """
    prepare_libraries()
    run = RunFolder(run_folder)
    emit = on_event or _ignore
    with storage_faults():
        session = _Session(recipe, recipe_folder, run, base_folder, emit)
        session.open(resume)
        try:
            session.prepare(plan, data)
            return session.train(should_stop, wait_turn)
        except BaseException as error:
            session.note_failure(error)
            raise


def _ignore(event: TrainEvent) -> None:
    """Nobody watches."""


class _Session:
    """One process's part of a run."""

    def __init__(
        self,
        recipe: Recipe,
        recipe_folder: Path,
        run: RunFolder,
        base_folder: Path,
        emit: Callable[[TrainEvent], None],
    ) -> None:
        self._given = recipe
        self._recipe_folder = recipe_folder
        self._run = run
        self._base = base_folder
        self._emit = emit
        self._is_resumed = False
        self._started = time.monotonic()
        self._seconds_before = 0.0

    def open(self, resume: bool) -> None:
        """Take the folder, for a new run or for one that goes on. Raises RunFolderError."""
        if not resume:
            if self._run.is_begun:
                raise RunFolderError(
                    f"'{self._run.path.name}' already holds a run; go on with --resume, or give another --output"
                )
            self._run.path.mkdir(parents=True, exist_ok=True)
            write_text(self._run.recipe, dump_recipe(self._given))
            self._run.write_state(RunState("running", "", 0, self._given.sha256(), ""))
            return
        state = self._run.read_state()
        if state.recipe_sha256 != self._given.sha256():
            raise RunFolderError(
                "the recipe is not the one that this run began with; resume with the run folder's recipe.yaml, "
                "or start a new run"
            )
        self._is_resumed = True
        self._seconds_before = state.seconds
        self._run.write_state(RunState(**{**asdict(state), "status": "running", "message": ""}))

    def prepare(self, plan: TrainingPlan | None, data: BuiltData | None) -> None:
        """Tokenizer, data, plan, resolved recipe, preflight. Raises whatever is wrong with them."""
        from loraplex_trainer.base_model import load_tokenizer
        from loraplex_trainer.plan.resolve import resolve
        from loraplex_trainer.train.inputs import make_plan_for, stages_of
        from loraplex_trainer.train.preflight import preflight

        self.tokenizer = load_tokenizer(self._base)
        self.stages, data_sha256, self.warnings = stages_of(
            self._given, self._recipe_folder, self._run, self.tokenizer, data, self._say_progress
        )
        state = self._run.read_state()
        if self._is_resumed and state.data_sha256 not in ("", data_sha256):
            raise RunFolderError("the data is not what this run began with; start a new run")
        self._run.change_state(data_sha256=data_sha256)
        self.plan = plan or make_plan_for(self._given, self._base, self.stages, self.tokenizer)
        self.recipe = resolve(self._given, self.plan)
        write_json(self._run.plan, asdict(self.plan))
        write_text(self._run.resolved, dump_recipe(self.recipe))
        rows = [row for stage in self.stages for row in (*stage.train, *stage.val)]
        self.preflight, _ = preflight(
            rows, self.tokenizer, self.recipe.system, self.plan.max_length, self._base
        )
        self.warnings += self.preflight.warnings
        for warning in self.warnings:
            self._emit(Log(f"warning: {warning}"))
        self._check_room()

    def train(
        self, should_stop: Callable[[], bool] | None, wait_turn: Callable[[], None] | None
    ) -> TrainReport:
        """Run the stages that are not done yet, and write the report."""
        import torch
        from transformers import set_seed

        from loraplex_trainer.base_model import load_for_training
        from loraplex_trainer.train.adapter import add_adapter, load_adapter
        from loraplex_trainer.train.peak_memory import PeakMemory
        from loraplex_trainer.train.sft import steps_per_epoch
        from loraplex_trainer.train.stage_run import RunContext, StageRun, autocast
        from loraplex_trainer.train.stages import with_curriculum

        memory = PeakMemory(torch.device(self.plan.device))
        set_seed(self.recipe.train.seed)  # before the adapter's random A matrices are made
        model = add_adapter(
            load_for_training(self._base, self.plan, self.recipe.quant), self.recipe, self.plan
        )
        memory.look()
        losses_of = _losses_under(model, self.tokenizer, self.recipe, autocast(self.plan))
        stages = [part for stage in self.stages for part in with_curriculum(stage, self.recipe, losses_of)]
        steps = [steps_per_epoch(self.plan, len(stage.train)) * stage.epochs.max for stage in stages]
        context = RunContext(
            run=self._run,
            recipe=self.recipe,
            plan=self.plan,
            model=model,
            tokenizer=self.tokenizer,
            memory=memory,
            num_steps=sum(steps),
            emit=self._emit,
            should_stop=should_stop,
            wait_turn=wait_turn,
        )
        reports = self._stage_reports()
        for index, stage in enumerate(stages):
            if index < len(reports):
                continue
            if index > 0:
                load_adapter(model, self._run.best)
            self._run.change_state(stage=stage.name)
            self._emit(StageStarted(stage.name, index, len(stages), len(stage.train), stage.epochs.max))
            report = StageRun(context, stage, index, sum(steps[:index])).run(self._is_resumed)
            reports.append(report)
            if report.end != "done":
                break
            write_json(self._run.checkpoints / "stages.json", [asdict(done) for done in reports])
            self._run.change_state(stages_done=index + 1)
        return self._finish(reports, memory.peak_bytes)

    def _finish(self, reports: list[StageReport], peak_bytes: int) -> TrainReport:
        from loraplex_trainer.train.report import make_report

        status = {"done": "finished", "paused": "paused", "cancelled": "cancelled"}[reports[-1].end]
        report = make_report(
            self._run,
            status,
            self.recipe,
            self.plan,
            reports,
            recipe_sha256=self._given.sha256(),
            data_sha256=self._run.read_state().data_sha256,
            preflight=self.preflight,
            warnings=self.warnings,
            seconds=self._seconds(),
            peak_memory_bytes=peak_bytes,
        )
        write_report(self._run, report)
        self._run.change_state(status=status, seconds=self._seconds())
        self._emit(Finished(report.status, self._run.path))
        return report

    def note_failure(self, error: BaseException) -> None:
        """Leave the reason in the state, as far as the disk takes it."""
        import contextlib

        with contextlib.suppress(OSError, RunFolderError):
            self._run.change_state(status="failed", message=str(error)[:500], seconds=self._seconds())

    def _stage_reports(self) -> list[StageReport]:
        """Of the stages that an earlier process has done."""
        from loraplex_trainer.train.stage_run import StageReport

        done = self._run.read_state().stages_done
        if not done:
            return []
        documents = json.loads((self._run.checkpoints / "stages.json").read_text(encoding="utf-8"))
        return [StageReport(**{**d, "alarms": tuple(d["alarms"])}) for d in documents[:done]]

    def _seconds(self) -> float:
        return round(self._seconds_before + time.monotonic() - self._started, 2)

    def _say_progress(self, what: str, done: int, total: int) -> None:
        if done == total:
            self._emit(Log(f"{what}: {total}"))

    def _check_room(self) -> None:
        from loraplex_trainer.train.adapter import checkpoint_bytes

        needed = _NUM_CHECKPOINTS * checkpoint_bytes(self.plan) + _SPARE_BYTES
        free = shutil.disk_usage(self._run.path).free
        if free < needed:
            raise TrainingStorageError(
                f"the run folder's disk has {free / 2**20:.0f} MiB left, and a run of this size needs "
                f"{needed / 2**20:.0f} MiB; make room, or choose another --output"
            )


def _losses_under(model: Any, tokenizer: Any, recipe: Recipe, precision: Any) -> Callable[[Any], list[float]]:
    """Mean loss of each row under the base alone."""

    def losses_of(rows: Any) -> list[float]:
        from loraplex_trainer.train.losses import row_losses
        from loraplex_trainer.train.tokens import padding_id, render

        with model.disable_adapter(), precision:
            losses = row_losses(model, render(rows, tokenizer, recipe.system), padding_id(tokenizer))
        return [row.mean for row in losses]

    return losses_of
