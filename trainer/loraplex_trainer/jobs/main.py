"""`python -m loraplex_trainer.jobs.main`: one order of the server on standard input, carried out, then the end.

What it says goes to standard output as lines of JSON (`loraplex_server.training.messages`); what libraries print goes
to standard error.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

from loraplex_server.child_process import die_with_parent, private_stdout
from loraplex_server.training.messages import CheckOrder, Outcome, RunOrder, encode
from loraplex_trainer.jobs.channel import ServerChannel

_OUTCOME_FILE = "outcome.json"
_LOCK_FILE = ".lock"
_LOCK_TIMEOUT_S = 30.0


def main() -> None:
    """Carry out one order."""
    die_with_parent()
    channel = ServerChannel(sys.stdin.buffer, private_stdout())
    order = channel.first_command()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    if isinstance(order, CheckOrder):
        from loraplex_trainer.jobs.check import check

        channel.tell(check(order))
    elif isinstance(order, RunOrder):
        channel.listen(lambda: os._exit(1))  # the next server goes on from the last checkpoint
        _run(order, channel)
    sys.stderr.flush()
    os._exit(0)  # libraries' threads would keep the process, and with it the device


def _run(order: RunOrder, channel: ServerChannel) -> None:
    from loraplex_trainer.jobs.pipeline import run_job

    job_folder = Path(order.run_folder).parent
    with (job_folder / _LOCK_FILE).open("wb") as lock:
        _take(lock)
        outcome = run_job(order, channel)
        keep_outcome(job_folder / _OUTCOME_FILE, outcome)
        channel.tell(outcome)


def keep_outcome(file: Path, outcome: Outcome) -> None:
    """On disk, whole, before anybody is told: a server that dies meanwhile finds it at its next start."""
    scratch = file.with_suffix(".part")
    with scratch.open("wb") as writer:
        writer.write(encode(outcome))
        writer.flush()
        os.fsync(writer.fileno())
    scratch.replace(file)


def _take(lock: BinaryIO) -> None:
    """Wait until a process of the same job, whose server was killed a moment ago, is gone. Raises BlockingIOError."""
    deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.05)


if __name__ == "__main__":
    main()
