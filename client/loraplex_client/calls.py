"""One unary call, sent again as long as its budget allows; for both grpc stacks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from loraplex_client.errors import api_error
from loraplex_client.retry import RetryBudget

_Response = TypeVar("_Response")


def call(method: Callable[..., _Response], request: object, timeout_s: float | None) -> _Response:
    """Raises LoraplexApiError."""
    budget = RetryBudget(timeout_s)
    while True:
        try:
            return method(request, timeout=budget.timeout_s)
        except grpc.RpcError as error:
            failure = api_error(error)
        pause_s = budget.pause_s(failure)
        if pause_s is None:
            raise failure
        time.sleep(pause_s)


async def call_async(
    method: Callable[..., Awaitable[_Response]], request: object, timeout_s: float | None
) -> _Response:
    """Raises LoraplexApiError."""
    budget = RetryBudget(timeout_s)
    while True:
        try:
            return await method(request, timeout=budget.timeout_s)
        except grpc.RpcError as error:
            failure = api_error(error)
        pause_s = budget.pause_s(failure)
        if pause_s is None:
            raise failure
        await asyncio.sleep(pause_s)


def or_default(timeout_s: float | None, default_s: float | None) -> float | None:
    return default_s if timeout_s is None else timeout_s
