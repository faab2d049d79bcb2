"""The fake server as a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe

from loraplex_loadtest.errors import GeneratorFailedError
from loraplex_loadtest.fake.law import LatencyLaw
from loraplex_loadtest.targets.target import TargetAddress, TargetKind

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class FakeAddresses:
    """Where it listens."""

    grpc_port: int
    http_port: int

    def target(self, kind: TargetKind = TargetKind.LORAPLEX) -> TargetAddress:
        """One of its three protocols."""
        url = f"http://127.0.0.1:{self.http_port}"
        address = url if kind is TargetKind.OPENAI else f"127.0.0.1:{self.grpc_port}"
        # Its metrics are Loraplex's, whatever protocol asked.
        metrics = f"{url}/metrics" if kind is TargetKind.LORAPLEX else ""
        return TargetAddress(kind, address, metrics, model="base", continuous_usage=True)


@contextmanager
def fake_server(law: LatencyLaw) -> Iterator[FakeAddresses]:
    """Spawned, ready; ended when the block is left."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, law), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_START_TIMEOUT_S):
            raise GeneratorFailedError("the fake server did not start")
        yield FakeAddresses(*ours.recv())
    finally:
        ours.close()
        process.terminate()
        process.join(_STOP_TIMEOUT_S)
        if process.is_alive():
            process.kill()


def _main(pipe: Pipe, law: LatencyLaw) -> None:
    asyncio.run(_run(pipe, law))


async def _run(pipe: Pipe, law: LatencyLaw) -> None:
    from loraplex_loadtest.fake.server import serve

    server, runner, grpc_port, http_port = await serve(law)
    pipe.send((grpc_port, http_port))
    await server.wait_for_termination()
    await runner.cleanup()
