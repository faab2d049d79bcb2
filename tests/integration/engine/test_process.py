"""The engine's loop carries out what operators ask for, also while there is nothing to run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import msgspec
import pytest
import zmq

from loraplex_server.engine.messages import (
    Command,
    EngineMessage,
    ForgetAdapter,
    PinAdapters,
    Shutdown,
    StepOutputs,
    WarmAdapter,
)
from loraplex_server.engine.process import EngineLoop
from tests.integration.engine.world import World, start_engine


class RunningLoop:
    """An engine's loop in a thread, driven through its sockets."""

    def __init__(self, world: World) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self.commands = context.socket(zmq.PUSH)
        receiver = context.socket(zmq.PULL)
        port = self.commands.bind_to_random_port("tcp://127.0.0.1")
        receiver.connect(f"tcp://127.0.0.1:{port}")
        self.engine = start_engine(world)
        self.messages: queue.Queue[EngineMessage] = queue.Queue()
        loop = EngineLoop(self.engine, receiver, self.messages.put)
        self.thread = threading.Thread(target=loop.run)
        self.thread.start()
        self.receiver = receiver
        self.tiers: dict[str, str] = {}
        self.failures: list[str] = []

    def send(self, command: Command) -> None:
        self.commands.send(msgspec.msgpack.encode(command))

    def read_until_told(self, digest: str, tier: str) -> None:
        while self.tiers.get(digest) != tier:
            message = self.messages.get(timeout=30)
            assert isinstance(message, StepOutputs)
            self.tiers.update((move.digest, move.tier) for move in message.stats.residency)
            self.failures += [failure.reason for failure in message.stats.load_failures]

    def close(self) -> None:
        self.send(Shutdown())
        self.thread.join(30)
        self.engine.close()
        self.commands.close(linger=0)
        self.receiver.close(linger=0)


@pytest.fixture
def loop(world: World) -> Iterator[RunningLoop]:
    running = RunningLoop(world)
    yield running
    running.close()


def test_a_warmed_adapter_is_told_by_an_engine_without_work(loop: RunningLoop, world: World) -> None:
    digest = world.digests["rslora"]
    loop.send(WarmAdapter(digest))
    loop.read_until_told(digest, "slot")

    loop.send(ForgetAdapter(digest))

    loop.read_until_told(digest, "disk")


def test_pinned_adapters_and_what_cannot_be_pinned_are_told(loop: RunningLoop, world: World) -> None:
    loop.send(PinAdapters([world.damaged["changed"], world.digests["rank-2"], world.digests["rank-16"]]))

    loop.read_until_told(world.digests["rank-2"], "slot")
    loop.read_until_told(world.digests["rank-16"], "slot")

    assert loop.failures == ["ADAPTER_UNAVAILABLE"]
