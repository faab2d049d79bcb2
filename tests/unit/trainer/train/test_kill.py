"""A process that is killed, wherever it is, leaves a run that can be resumed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from loraplex_trainer.train.adapter import WEIGHTS_FILE
from loraplex_trainer.train.events import Evaluated, StageStarted, Step, TrainEvent
from loraplex_trainer.train.run_folder import RunFolder
from loraplex_trainer.train.session import train

from .conftest import built, colour_rows, tiny_plan, tiny_recipe

RECIPE = tiny_recipe(
    train={"epochs": {"min": 1, "max": 2}},
    stages=[{"name": "general"}, {"name": "domain"}],
)
DATA = built(colour_rows(6)[:4], colour_rows(6)[4:])


def _train_until_killed(folder: Path, base: Path, moment: str) -> None:
    """Ends itself, without a chance to tidy up, at the given moment."""

    def watch(event: TrainEvent) -> None:
        moments = {
            "first epoch": isinstance(event, Step) and event.step == 2,
            "evaluation": isinstance(event, Evaluated) and event.epoch == 2,
            "between stages": isinstance(event, StageStarted) and event.index == 1,
        }
        if moments[moment]:
            os.kill(os.getpid(), signal.SIGKILL)

    train(RECIPE, folder, folder / "run", base, plan=tiny_plan(), data=DATA, on_event=watch)


@pytest.fixture(scope="module")
def straight(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights of the run that nobody kills."""
    folder = tmp_path_factory.mktemp("straight")
    report = train(RECIPE, folder, folder / "run", tiny_base, plan=tiny_plan(), data=DATA)
    return (report.run_folder / "best" / WEIGHTS_FILE).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["first epoch", "evaluation", "between stages"], ids=lambda m: m)
def test_a_killed_run_resumes_to_the_bytes_of_a_straight_one(
    tiny_base: Path, tmp_path: Path, straight: bytes, moment: str
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["loraplex_trainer.train.sft", "peft"])  # once for all three
    process = context.Process(target=_train_until_killed, args=(tmp_path, tiny_base, moment))
    process.start()
    process.join()
    run = RunFolder(tmp_path / "run")
    assert process.exitcode == -signal.SIGKILL
    assert run.read_state().status == "running"

    resumed = train(RECIPE, tmp_path, run.path, tiny_base, plan=tiny_plan(), data=DATA, resume=True)

    assert resumed.status == "finished"
    assert len(resumed.stages) == 2
    assert (run.best / WEIGHTS_FILE).read_bytes() == straight
