"""Whatever ends a job, its server learns what it was and whether it can go on."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from loraplex_server.training.messages import Outcome, RunOrder, decode_outcome
from loraplex_trainer.errors import TrainingDataError, TrainingStorageError
from loraplex_trainer.jobs import pipeline
from loraplex_trainer.jobs.channel import ServerChannel
from loraplex_trainer.jobs.main import keep_outcome
from loraplex_trainer.judge import gate
from loraplex_trainer.judge.gate_report import Check, GateReport

from ..train.conftest import tiny_recipe


class OutOfMemoryError(RuntimeError):
    """Called as torch's."""


def order_of(folder: Path) -> RunOrder:
    return RunOrder(
        recipe="",
        tenant="t",
        data_folder=str(folder),
        run_folder=str(folder / "run"),
        base_folder="",
        precision="fp32",
        max_rank=8,
        is_resumed=False,
        max_waiting=0,
        max_pause_s=0,
    )


@pytest.mark.parametrize(
    ("error", "reason", "is_resumable"),
    [
        (TrainingDataError("a.csv, line 3: no answer"), "TRAINING_DATA_INVALID", False),
        (TrainingStorageError("the disk is full"), "TRAINING_STORAGE_FULL", True),
        (MemoryError(), "JOB_OUT_OF_MEMORY", True),
        (OutOfMemoryError("CUDA"), "JOB_OUT_OF_MEMORY", True),
        (ZeroDivisionError("/home/somebody/secret"), "INTERNAL", True),
    ],
    ids=["data", "disk", "memory", "device", "bug"],
)
def test_an_error_is_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, is_resumable: bool
) -> None:
    def fail(self: Any) -> Outcome:
        raise error

    monkeypatch.setattr(pipeline._Job, "run", fail)
    order = order_of(tmp_path)
    reader, _ = os.pipe()
    channel = ServerChannel(os.fdopen(reader, "rb"), io.BytesIO())

    outcome = pipeline.run_job(order, channel)

    assert (outcome.status, outcome.reason, outcome.is_resumable) == ("failed", reason, is_resumable)
    assert "/home" not in outcome.message


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        ("pass", Outcome("packaged", verdict="pass")),
        ("fail", Outcome("failed", "GATE_FAILED", "gain: too low", verdict="fail")),
        ("inconclusive", Outcome("failed", "GATE_INCONCLUSIVE", "gain: too low", verdict="inconclusive")),
    ],
)
def test_only_a_passed_gate_lets_the_server_register(verdict: Any, outcome: Outcome) -> None:
    checks = (Check("valid", "pass", "sound", {}), Check("gain", verdict, "too low", {}))
    report = GateReport("faq", "team", "d" * 64, "fp32", "cpu", checks, verdict, 1.0)

    assert pipeline.outcome_of_gate(report) == outcome


def test_an_outcome_is_on_disk_whole(tmp_path: Path) -> None:
    outcome = Outcome("failed", "X", "why", is_resumable=True)

    keep_outcome(tmp_path / "outcome.json", outcome)

    assert decode_outcome((tmp_path / "outcome.json").read_bytes()) == outcome
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]


def test_the_gate_asks_the_rows_that_the_last_stage_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every stage has sources of its own, there is no folder of shared data."""
    given: dict[str, Any] = {}

    def run_gate(*_: Any, **options: Any) -> GateReport:
        given.update(options)
        return GateReport("faq", "team", "d" * 64, "fp32", "cpu", (), "pass", 1.0)

    monkeypatch.setattr(gate, "run_gate", run_gate)
    order = order_of(tmp_path)
    reader, _ = os.pipe()
    job = pipeline._Job(order, ServerChannel(os.fdopen(reader, "rb"), io.BytesIO()))

    job._gate(tiny_recipe(), tmp_path / "run/package")

    assert given.get("built") is None  # then it is the data of the run that the package lies in
