"""grpc.health.v1. grpcio's own asyncio servicer leaves all other watchers deaf as soon as one of them goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loraplex_server.rpc.grpc_types import Context

_Response = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # its package has no types
    """One status for all services. Owned by the event loop."""

    def __init__(self, services: Iterable[str]) -> None:
        """`services` are full names; "" stands for the server as a whole."""
        self._services = frozenset(services)
        self._is_serving = False
        self._changed = asyncio.Event()  # set once, then replaced

    def set_serving(self, is_serving: bool) -> None:
        """Tell everyone who watches."""
        self._is_serving = is_serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the server has no such service")
        return _Response(status=self._status(request.service))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                yield _Response(status=status)
                last = status
            await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return int(_Response.SERVICE_UNKNOWN)
        return int(_Response.SERVING if self._is_serving else _Response.NOT_SERVING)
