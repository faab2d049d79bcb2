"""What the front end spawns. Names the engine without importing it, so the front end never loads torch."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from multiprocessing import connection

from loraplex_server.engine.config import EngineConfig


def run_engine_process(config: EngineConfig, command_address: str, message_address: str) -> None:
    """Runs in the spawned process; see `loraplex_server.engine.process`."""
    # Ctrl-C and service managers signal every process of a group. The front end drains first, then ends this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_with_front_end()

    gc.disable()  # nothing of what an import makes is garbage, and looking for it is a tenth of the import
    from loraplex_server.engine.process import run_engine

    gc.enable()
    run_engine(config, command_address, message_address)
    # Everything is closed. To take torch and the interpreter apart as well would be half a second of every stop.
    os._exit(0)


def _end_with_front_end() -> None:
    """End this process in the instant when the one that spawned it dies, also while it loads: the next server wants the
    memory. By the pipe between the two and not by a signal of the kernel's, which comes when the spawning thread ends.
    """
    front_end = multiprocessing.parent_process()
    if front_end is None:
        return
    sentinel = front_end.sentinel

    def wait() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="front-end-watch", daemon=True).start()
