"""What the front end spawns. Names the engine without importing it, so the front end never loads torch."""

from __future__ import annotations

from loraplex_server.engine.config import EngineConfig


def run_engine_process(config: EngineConfig, command_address: str, message_address: str) -> None:
    """Runs in the spawned process; see `loraplex_server.engine.process`."""
    from loraplex_server.engine.process import run_engine

    run_engine(config, command_address, message_address)
