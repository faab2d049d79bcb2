"""gRPC without the client's help: no retries, any bytes, statuses as they came."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from loraplex_client import LoraplexApiError
from loraplex_client.errors import api_error
from tests.integration.live_server import LiveServer


@contextmanager
def raw_channel(server: LiveServer, *options: tuple[str, Any]) -> Iterator[grpc.Channel]:
    """A channel that repeats nothing by itself."""
    with grpc.insecure_channel(server.target, [("grpc.enable_retries", 0), *options]) as channel:
        yield channel


def failure_of(call: Callable[[], object]) -> LoraplexApiError:
    """What a call that must fail fails with, its google.rpc details read."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return api_error(caught.value)
