"""What the front end spawns. Names the engine without importing it, so the front end never loads torch."""

from __future__ import annotations

import signal

from loraplex_server.engine.config import EngineConfig


def run_engine_process(config: EngineConfig, command_address: str, message_address: str) -> None:
    """Runs in the spawned process; see `loraplex_server.engine.process`."""
    # Ctrl-C and service managers signal every process of a group. The front end drains first, then ends this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    from loraplex_server.engine.process import run_engine

    run_engine(config, command_address, message_address)
