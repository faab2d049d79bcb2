"""The one call of grpc.health.v1 that the client needs."""

from __future__ import annotations

import grpc

CHECK_METHOD = "/grpc.health.v1.Health/Check"
POLL_S = 0.1  # between two looks at a server that is not ready
# HealthCheckRequest{service: ""} is empty on the wire, HealthCheckResponse{status: SERVING} is field 1, value 1:
# too little to make every client install the health package.
REQUEST = b""
_SERVING = b"\x08\x01"
_NOT_YET = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def is_serving(response: bytes) -> bool:
    return response == _SERVING


def may_become_ready(code: grpc.StatusCode) -> bool:
    """Whether a failed check can mean that the server is still starting."""
    return code in _NOT_YET


def as_bytes(data: bytes) -> bytes:
    """(De)serializer of a call that carries bytes."""
    return data
