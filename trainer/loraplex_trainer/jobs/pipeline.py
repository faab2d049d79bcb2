"""A job from its recipe to the gate's verdict: the same functions that `loraplex train` calls, one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from loraplex_adapters.errors import LoraplexError
from loraplex_server.training.messages import (
    MAX_TEXT,
    Measured,
    Outcome,
    RunOrder,
    Said,
    StageBegan,
    StepDone,
)
from loraplex_trainer.jobs.channel import ServerChannel
from loraplex_trainer.jobs.check import read_job_recipe
from loraplex_trainer.jobs.train_reports import TrainReports
from loraplex_trainer.libraries import prepare_libraries

if TYPE_CHECKING:
    from loraplex_trainer.base_model import Precision
    from loraplex_trainer.judge.gate_report import GateReport
    from loraplex_trainer.recipe.document import Recipe

log = logging.getLogger(__name__)

_MENDED_BY_RESUMING = frozenset(
    {"TRAINING_STORAGE_FULL", "OUTPUT_FAILED", "STORAGE_UNAVAILABLE", "ENGINE_UNAVAILABLE"}
)
"""Reasons whose cause may go away while recipe and data stay as they are."""


def run_job(order: RunOrder, channel: ServerChannel) -> Outcome:
    """Carry out a job, or go on with it. Whatever goes wrong is an outcome."""
    prepare_libraries()
    try:
        return _Job(order, channel).run()
    except LoraplexError as error:
        return Outcome("failed", error.reason, str(error)[:MAX_TEXT], error.reason in _MENDED_BY_RESUMING)
    except MemoryError:
        message = "the machine has no memory left for the job; resume it when there is more"
        return Outcome("failed", "JOB_OUT_OF_MEMORY", message, is_resumable=True)
    except Exception as error:
        log.exception("unexpected error in a job")
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            message = "the device has no memory left for the job; lower the micro batch, or resume it later"
            return Outcome("failed", "JOB_OUT_OF_MEMORY", message, is_resumable=True)
        message = (
            f"a bug of the trainer ({type(error).__name__}); the job's output on the server has its place"
        )
        return Outcome("failed", "INTERNAL", message, is_resumable=True)


class _Job:
    """One attempt."""

    def __init__(self, order: RunOrder, channel: ServerChannel) -> None:
        from loraplex_trainer.train.run_folder import RunFolder

        self._order = order
        self._channel = channel
        self._run = RunFolder(Path(order.run_folder))
        self._data_folder = Path(order.data_folder)
        self._base_folder = Path(order.base_folder)

    def run(self) -> Outcome:
        """Raises LoraplexError."""
        recipe, violations = read_job_recipe(self._order.recipe, self._order.tenant)
        if recipe is None:
            wrong = "; ".join(f"{entry.field}: {entry.description}" for entry in violations)
            return Outcome("failed", "RECIPE_INVALID", wrong[:MAX_TEXT])
        if (unfinished := self._train(recipe)) is not None:
            return unfinished
        self._evaluate()
        self._begin("package")
        from loraplex_trainer.packaging.package import package_run

        package = package_run(self._run, self._base_folder)
        if self._channel.is_cancelled:
            return Outcome("cancelled")
        return self._gate(recipe, package)

    def _train(self, recipe: Recipe) -> Outcome | None:
        """None where the training has come to its end, now or in an earlier attempt."""
        from loraplex_trainer.train.session import train

        run, channel, order = self._run, self._channel, self._order
        if run.is_begun and run.read_state().status == "finished":
            return None
        self._begin("data")
        report = train(
            recipe,
            self._data_folder,
            run.path,
            self._base_folder,
            resume=run.is_begun,
            on_event=TrainReports(channel).take,
            should_stop=lambda: channel.is_cancelled,
            wait_turn=lambda: channel.wait_turn(order.max_waiting, order.max_pause_s),
        )
        match report.status:
            case "paused":
                message = run.read_state().message or "too many of the sample answers were bad"
                return Outcome("paused", message=message[:MAX_TEXT], is_resumable=True)
            case "cancelled":
                return Outcome("cancelled")
        return None

    def _evaluate(self) -> None:
        """Measure the best adapter, unless an earlier attempt did."""
        from loraplex_trainer.judge.evaluate import evaluate_run

        if self._run.eval.is_file():
            return
        self._begin("evaluate")
        evaluation = evaluate_run(
            self._run,
            self._data_folder,
            self._base_folder,
            precision=self._precision(),
            progress=self._progress("evaluate"),
        )
        values = {
            "domain_base": evaluation.domain_base.value,
            "domain_adapter": evaluation.domain_adapter.value,
            "general_base": evaluation.general_base.value,
            "general_adapter": evaluation.general_adapter.value,
        }
        self._channel.tell(Measured("evaluate", values))

    def _gate(self, recipe: Recipe, package: Path) -> Outcome:
        from loraplex_trainer.judge.gate import run_gate

        self._begin("gate")
        report = run_gate(
            package,
            recipe,
            self._data_folder,
            self._base_folder,
            others=[Path(other) for other in self._order.other_packages],
            precision=self._precision(),
            progress=self._progress("gate"),
        )
        for check in report.checks:
            is_good = check.verdict == "pass"
            text = f"{check.name}: {check.verdict}; {check.message}"
            self._channel.tell(Said(text[:MAX_TEXT], "gate", is_warning=not is_good))
        return outcome_of_gate(report)

    def _precision(self) -> Precision:
        return cast("Precision", self._order.precision)

    def _begin(self, stage: str) -> None:
        self._channel.tell(StageBegan(stage))

    def _progress(self, stage: str) -> Callable[[str, int, int], None]:
        def tell(what: str, done: int, total: int) -> None:
            self._channel.tell(StepDone(stage, done, total))

        return tell


def outcome_of_gate(report: GateReport) -> Outcome:
    """A passed gate lets the server register the package; any other keeps it and says why."""
    if report.verdict == "pass":
        return Outcome("packaged", verdict="pass")
    reason = "GATE_FAILED" if report.verdict == "fail" else "GATE_INCONCLUSIVE"
    why = "; ".join(f"{check.name}: {check.message}" for check in report.checks if check.verdict != "pass")
    return Outcome("failed", reason, why[:MAX_TEXT], verdict=report.verdict)
