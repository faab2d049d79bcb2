"""A generator's process: spawned, told its order through a pipe, and read through the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from typing import Any

from loraplex_loadtest.running.generator import Generator
from loraplex_loadtest.running.order import Order, Snapshot

READY = "ready"
STOP = "stop"


def main(pipe: Pipe) -> None:
    """Order in, READY out, start moment in, snapshots out, and at last what was recorded."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    order: Order = pipe.recv()
    asyncio.run(_serve(pipe, order))
    pipe.close()


async def _serve(pipe: Pipe, order: Order) -> None:
    generator = Generator(order, _sender(pipe), lambda: must_stop(pipe))
    await generator.prepare()
    pipe.send(READY)
    start_s: float = await asyncio.to_thread(pipe.recv)
    recorded: Any = await generator.run(start_s)
    pipe.send(recorded)


def must_stop(pipe: Pipe) -> bool:
    """Whether the parent said so, or is gone: nobody would read what an orphan measures."""
    try:
        return bool(pipe.poll() and pipe.recv() == STOP)
    except (EOFError, OSError):
        return True


def _sender(pipe: Pipe) -> Callable[[Snapshot], None]:
    def send(snapshot: Snapshot) -> None:
        with suppress(BrokenPipeError):  # `must_stop` finds out
            pipe.send(snapshot)

    return send
