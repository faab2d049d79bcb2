"""Checkpoints of a stage: which are whole, and which one a resumed run goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from loraplex_trainer.train.run_folder import write_json

_KEPT = "loraplex_state.json"
_TRAINER_STATE = "trainer_state.json"


def write_kept_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """To be written last: a checkpoint without it was cut off by a kill."""
    write_json(checkpoint / _KEPT, state)


def read_kept_state(checkpoint: Path) -> dict[str, Any]:
    """What `write_kept_state` wrote."""
    state: dict[str, Any] = json.loads((checkpoint / _KEPT).read_text(encoding="utf-8"))
    return state


def last_checkpoint(stage_folder: Path) -> Path | None:
    """The newest whole checkpoint; what is not whole is removed, so that nothing takes it for one."""
    whole = []
    for folder in stage_folder.glob("checkpoint-*"):
        if (folder / _KEPT).is_file() and (folder / _TRAINER_STATE).is_file():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return max(whole, key=lambda folder: int(folder.name.partition("-")[2]), default=None)


def resume_step(checkpoints: Path) -> int | None:
    """Of the run: the step that it would go on from; None where no stage has a whole checkpoint."""
    kept = [
        read_kept_state(state.parent)
        for state in checkpoints.glob(f"*/checkpoint-*/{_KEPT}")
        if (state.parent / _TRAINER_STATE).is_file()
    ]
    return max((state.get("run_step", state["step"]) for state in kept), default=None)


def best_checkpoint(stage_folder: Path, best_step: int | None) -> Path | None:
    """The checkpoint of `best_step`, or, where nothing was evaluated, the last."""
    if best_step is not None and (stage_folder / f"checkpoint-{best_step}").is_dir():
        return stage_folder / f"checkpoint-{best_step}"
    return last_checkpoint(stage_folder)


def mend_best_path(checkpoint: Path) -> None:
    """The trainer notes its best checkpoint by an absolute path; the run folder may have moved since."""
    file = checkpoint / _TRAINER_STATE
    state = json.loads(file.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint"):
        best = checkpoint.parent / Path(state["best_model_checkpoint"]).name
        if str(best) != state["best_model_checkpoint"]:
            write_json(file, {**state, "best_model_checkpoint": str(best)})
