"""What the processes that the server starts have in common: what they get to know, and how they end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import BinaryIO

# What Python needs. Keys of buckets and passwords of databases are no business of a process that reads what strangers
# sent.
_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_PR_SET_PDEATHSIG = 1


def bare_environment(*names: str) -> dict[str, str]:
    """Of this process's environment what Python needs, and `names`, as far as they are set."""
    return {name: os.environ[name] for name in (*_PASSED_ON, *names) if name in os.environ}


def die_with_parent() -> None:
    """To be called by the child: it is killed when its parent dies, whatever it does at that moment."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def private_stdout() -> BinaryIO:
    """Standard output for messages alone: what a library prints goes to standard error from now on."""
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return messages
