"""Stands for `loraplex_trainer.jobs.main` in tests of the server: speaks its protocol and does what the recipe says.

`install(folder)` writes a package `loraplex_trainer` that runs this file; put `folder` on PYTHONPATH of a server. The
recipe is JSON (which is YAML): `name`, `steps`, and what `script` has:

    step_s      seconds of a step
    package     folder that is copied as the package
    verdict     of the gate; pass unless given
    outcome     paused, failed: ends so after the first half of the steps, in the first attempt
    die_at      step after which it kills itself, in the first attempt
    stay_at     step after which it does no more until it is ended, in the first attempt
    violations  {field: description}
    library     that is missing
    eat_bytes   memory to take before the first step
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

_RUN = "import runpy\n\nrunpy.run_path({path!r}, run_name='__main__')\n"


def install(folder: Path) -> Path:
    """A folder for PYTHONPATH."""
    package = folder / "loraplex_trainer" / "jobs"
    package.mkdir(parents=True)
    for init in (package / "__init__.py", package.parent / "__init__.py"):
        init.touch()
    (package / "main.py").write_text(_RUN.format(path=__file__))
    return folder


class _Server:
    """What the server said last."""

    def __init__(self) -> None:
        self.order: dict[str, Any] = json.loads(sys.stdin.readline())
        self.waiting = 0
        self.is_cancelled = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            command = json.loads(line)
            if command["type"] == "QueueDepth":
                self.waiting = command["waiting"]
            elif command["type"] == "CancelOrder":
                self.is_cancelled = True
        os._exit(1)  # the server is gone


def _tell(kind: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"type": kind, **fields}) + "\n")
    sys.stdout.flush()


def _end(job_folder: Path, status: str, **fields: Any) -> None:
    outcome = {"type": "Outcome", "status": status, **fields}
    part = job_folder / "outcome.part"
    part.write_text(json.dumps(outcome))
    os.replace(part, job_folder / "outcome.json")
    _tell(**{"kind": "Outcome", "status": status, **fields})


def _check(order: dict[str, Any]) -> None:
    try:
        recipe = json.loads(order["recipe"])
    except ValueError:
        _tell("Checked", violations=[{"field": "", "description": "is not YAML"}], adapter="", device="auto")
        return
    script = recipe.get("script", {})
    if "library" in script:
        _tell("LibraryMissing", library=script["library"])
        return
    violations = [{"field": f, "description": d} for f, d in script.get("violations", {}).items()]
    _tell("Checked", violations=violations, adapter=recipe["name"], device=recipe.get("device", "auto"))


def _run(order: dict[str, Any], server: _Server) -> None:
    recipe = json.loads(order["recipe"])
    script = recipe.get("script", {})
    run = Path(order["run_folder"])
    done_file = run / "done"
    done = int(done_file.read_text()) if order["is_resumed"] and done_file.exists() else 0
    is_first = not order["is_resumed"]
    sys.stderr.write("the scripted trainer begins\n")
    data = {
        path.relative_to(order["data_folder"]).as_posix(): path.read_text()
        for path in Path(order["data_folder"]).rglob("*")
        if path.is_file()
    }
    (run / "seen.json").write_text(json.dumps(data))
    others = [sorted(path.name for path in Path(other).iterdir()) for other in order["other_packages"]]
    (run / "others.json").write_text(json.dumps(others))
    eaten = b"x" * script.get("eat_bytes", 0)
    _tell("StageBegan", stage="train")
    _tell("Said", text=f"going on behind step {done} with {len(eaten)} bytes", stage="train")
    steps = recipe.get("steps", 4)
    for step in range(done + 1, steps + 1):
        began_s = time.monotonic()
        while server.waiting > order["max_waiting"] and time.monotonic() - began_s < order["max_pause_s"]:
            time.sleep(0.01)
        paused_s = time.monotonic() - began_s
        time.sleep(script.get("step_s", 0.01))
        if server.is_cancelled:
            _end(run.parent, "cancelled")
            return
        done_file.write_text(str(step))
        _tell("StepDone", stage="train", step=step, num_steps=steps, loss=1 / step, paused_s=paused_s)
        if is_first and script.get("die_at") == step:
            os.kill(os.getpid(), signal.SIGKILL)
        while is_first and script.get("stay_at") == step and not server.is_cancelled:
            time.sleep(0.01)
        if is_first and "outcome" in script and step * 2 >= steps:
            fields = {"reason": "SCRIPTED", "message": "as the script says", "is_resumable": True}
            _end(run.parent, script["outcome"], **fields)
            return
    _tell("Measured", stage="gate", values={"domain_gain": 50.0})
    shutil.copytree(script["package"], run / "package", dirs_exist_ok=True)
    verdict = script.get("verdict", "pass")
    if verdict == "pass":
        _end(run.parent, "packaged", verdict=verdict)
    else:
        reason = {"fail": "GATE_FAILED", "inconclusive": "GATE_INCONCLUSIVE"}[verdict]
        _end(run.parent, "failed", verdict=verdict, reason=reason, message="domain gain is 0 points")


def main() -> None:
    server = _Server()
    order = server.order
    if order["type"] == "CheckOrder":
        _check(order)
    else:
        _run(order, server)
    sys.stdout.flush()
    os._exit(0)  # without waiting for the thread that listens


if __name__ == "__main__":
    main()
