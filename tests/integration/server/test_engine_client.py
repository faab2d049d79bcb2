"""The front end's side of the engine process, at moments that no client can time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from loraplex_adapters.store import PackageStore
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.engine import Engine
from loraplex_server.engine.messages import AddSequence, SamplingParams
from loraplex_server.engine_client import EngineClient, EngineState
from loraplex_server.errors import EngineRestartedError
from tests.integration.live_server import eventually


async def test_what_is_sent_between_the_engines_death_and_its_discovery_ends_as_restarted(
    tiny_base: Path, tmp_path: Path
) -> None:
    states: asyncio.Queue[EngineState] = asyncio.Queue()
    config = EngineConfig(base_path=tiny_base, store_path=tmp_path, quantization="fp32", kv_cache_bytes=2**20)
    client = EngineClient(config, on_state=states.put_nowait, on_stats=lambda stats: None)
    await client.start()
    try:
        assert client.process_id is not None
        engine = psutil.Process(client.process_id)
        running_id, running = client.submit(_sequence())

        os.kill(engine.pid, signal.SIGKILL)
        # Blocks the loop on purpose: it must not hear of the death before the next lines.
        psutil.wait_procs([engine], timeout=10)
        time.sleep(0.2)  # noqa: ASYNC251  # and the socket's own thread must
        sequence_id, stream = client.submit(_sequence())
        client.finish(running_id, abort=True)
        client.forget_adapter("0" * 64)

        with pytest.raises(EngineRestartedError):
            await stream.take()
        client.finish(sequence_id, abort=True)
        assert running is not stream
        while await states.get() is not EngineState.FAILED:
            pass
        while await states.get() is not EngineState.READY:
            pass
        assert client.num_streams == 0
    finally:
        await client.stop()


def _sequence() -> AddSequence:
    return AddSequence(0, [5, 6, 7], None, b"", SamplingParams(), time.monotonic())


def test_an_engine_without_work_watches_for_no_adapter(
    tiny_base: Path, packages: Path, tmp_path: Path
) -> None:
    digest = PackageStore(tmp_path).put(packages / "red").digest
    engine = Engine(
        EngineConfig(base_path=tiny_base, store_path=tmp_path, quantization="fp32", kv_cache_bytes=2**20)
    )
    try:
        engine.add(AddSequence(1, [5, 6, 7], digest, b"", SamplingParams(), time.monotonic()))
        assert engine.is_waiting_for_adapters
        engine.abort([1])

        assert not engine.is_waiting_for_adapters
    finally:
        engine.close()


SPAWN_AND_HANG = """
import multiprocessing, sys, time
from pathlib import Path
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.entry import run_engine_process
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    arguments = EngineConfig(base_path=folder, store_path=folder), f"ipc://{folder}/c", f"ipc://{folder}/m"
    engine = multiprocessing.get_context("spawn").Process(target=run_engine_process, args=arguments)
    engine.start()
    print(engine.pid, flush=True)
    time.sleep(3600)
"""


def test_an_engine_that_still_loads_ends_with_its_front_end(tmp_path: Path) -> None:
    """Else the next server meets it, with all the memory that it has taken by then."""
    os.mkfifo(tmp_path / "config.json")  # nobody writes into it: the base takes for ever to load
    script = tmp_path / "front_end.py"
    script.write_text(SPAWN_AND_HANG)
    with subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE) as front_end:
        assert front_end.stdout is not None
        engine = psutil.Process(int(front_end.stdout.readline()))
        eventually(lambda: engine.num_threads() > 1)  # it is past its interpreter's own start

        front_end.kill()

    eventually(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
