"""Corrects a plan by two real steps, run in a process whose memory is its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from loraplex_trainer.errors import MeasurementError
from loraplex_trainer.plan.hardware import GIB, Hardware
from loraplex_trainer.plan.planner import make_plan
from loraplex_trainer.plan.shape import ModelShape
from loraplex_trainer.plan.training_plan import Choice, DataSize, TrainingPlan
from loraplex_trainer.plan.trial import Trial, run_trial
from loraplex_trainer.recipe.document import Recipe

_MAX_TRIALS = 2


def measured_plan(
    recipe: Recipe,
    model: ModelShape,
    hardware: Hardware,
    base_folder: Path,
    data: DataSize | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> TrainingPlan:
    """The plan with measured peak and seconds per step.

    Where the measurement leads to another plan, e.g. a larger batch, that one is measured too, once. Raises
    MeasurementError, and what `make_plan` raises.
    """
    plan = make_plan(recipe, model, hardware, data)
    for number in range(_MAX_TRIALS):
        progress("trial steps", number, _MAX_TRIALS)
        trial = measure(plan, base_folder, recipe.lora.dropout)
        correction = trial.peak_bytes / plan.memory.total
        corrected = make_plan(recipe, model, hardware, data, correction)
        plan, measured = corrected, plan
        if _steps(plan) == _steps(measured):
            break
    progress("trial steps", _MAX_TRIALS, _MAX_TRIALS)
    if _steps(plan) != _steps(measured):
        plan = measured  # the last that was really run
    return _with_trial(plan, trial)


def measure(plan: TrainingPlan, base_folder: Path, dropout: float) -> Trial:
    """Run the plan's trial in a spawned process. Raises MeasurementError with the cause in one line."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, plan, base_folder, dropout), daemon=True)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = "the trial's process was ended, probably for lack of memory"
    finally:
        process.join()
        receiver.close()
    if isinstance(answer, Trial):
        return answer
    raise MeasurementError(
        f"the trial steps of {plan.method} failed: {answer}; plan without measuring, or smaller rows"
    )


def _child(sender: Connection, plan: TrainingPlan, base_folder: Path, dropout: float) -> None:
    try:
        sender.send(run_trial(plan, base_folder, dropout))
    except Exception as error:  # whatever it is, the parent names it
        first_line = (str(error).splitlines() or [""])[0]
        sender.send(f"{type(error).__name__}: {first_line}")
    finally:
        sender.close()


def _steps(plan: TrainingPlan) -> tuple[object, ...]:
    """What makes two plans run the same steps."""
    return plan.method, plan.optimizer, plan.micro_batch, plan.checkpointing


def _with_trial(plan: TrainingPlan, trial: Trial) -> TrainingPlan:
    estimated = plan.memory.total
    measured = Choice(
        "memory",
        f"{trial.peak_bytes / GIB:.2f} GiB",
        f"measured over two steps; {estimated / GIB:.2f} GiB were estimated ({estimated / trial.peak_bytes - 1:+.0%})",
    )
    return replace(
        plan,
        measured_peak_bytes=trial.peak_bytes,
        measured_step_seconds=trial.step_seconds,
        choices=(*plan.choices, measured),
    )
