"""grpc.health.v1 as a client sees it that watches."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.integration.live_server import LiveServer
from tests.integration.raw_calls import raw_channel

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
INFERENCE = "loraplex.v1.InferenceService"


@contextmanager
def watched_health(server: LiveServer, service: str = INFERENCE) -> Iterator[queue.SimpleQueue[int]]:
    """Every health status as the server tells it, beginning with the present one."""
    statuses: queue.SimpleQueue[int] = queue.SimpleQueue()
    with raw_channel(server) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))

        def follow() -> None:
            try:
                for response in watch:
                    statuses.put(response.status)
            except grpc.RpcError:
                pass  # the test is over

        reader = threading.Thread(target=follow)
        reader.start()
        try:
            yield statuses
        finally:
            watch.cancel()
            reader.join()


async def next_status(statuses: queue.SimpleQueue[int]) -> int:
    """The next health status, however long the engine takes to start."""
    return await asyncio.to_thread(statuses.get, timeout=120)
