"""The front end's side of the engine process, at moments that no client can time."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from loraplex_adapters.store import PackageStore
from loraplex_server.base.fingerprint import base_spec
from loraplex_server.engine.adapter_arena import AdapterArena, AdapterLayout, PackedAdapter
from loraplex_server.engine.adapter_loader import Allocate
from loraplex_server.engine.adapter_residency import AdapterResidency
from loraplex_server.engine.config import EngineConfig
from loraplex_server.engine.engine import Engine
from loraplex_server.engine.host_cache import HostCache
from loraplex_server.engine.messages import AddSequence, SamplingParams
from loraplex_server.engine_client import EngineClient, EngineState
from loraplex_server.errors import EngineRestartedError


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
        running_id, running = client.submit(_sequence)

        os.kill(engine.pid, signal.SIGKILL)
        # Blocks the loop on purpose: it must not hear of the death before the next lines.
        psutil.wait_procs([engine], timeout=10)
        time.sleep(0.2)  # noqa: ASYNC251  # and the socket's own thread must
        sequence_id, stream = client.submit(_sequence)
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


def _sequence(sequence_id: int) -> AddSequence:
    return AddSequence(sequence_id, [5, 6, 7], None, b"", SamplingParams(), time.monotonic())


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


def test_an_adapter_that_was_loaded_for_nobody_is_let_go_when_it_is_forgotten(tiny_base: Path) -> None:
    layout = AdapterLayout(base_spec(tiny_base))
    arena = AdapterArena(1000, torch.float32, layout)
    cache = HostCache(1000, torch.float32, pin_memory=False)
    read = threading.Event()

    def reader(digest: str, allocate: Allocate) -> PackedAdapter:
        read.set()
        return PackedAdapter(digest, allocate(10), {})

    residency = AdapterResidency(1, arena, cache, reader, copy_bytes=1000)
    residency.prefetch("a" * 64)
    assert read.wait(10)

    residency.forget("a" * 64)

    assert residency.num_loading == 0
    residency.close()
