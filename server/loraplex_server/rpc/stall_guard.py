"""Ends a stream whose client does not read, at the price of one timer per stream."""

from __future__ import annotations

import asyncio
from types import TracebackType

from loraplex_server.errors import WriteStallError
from loraplex_server.rpc.grpc_types import Context


class StallGuard:
    """A write that waits for `timeout_s` is cancelled, and leaving the guard raises WriteStallError.

    Used as a context manager by the one task that writes. The timer is not moved by every write, which would cost as
    much as the rest of a token's way: when it comes due it looks when the write under way began.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._write_started_s: float | None = None  # on the loop's clock; None between writes
        self._has_stalled = False

    def __enter__(self) -> StallGuard:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._num_cancellations = task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._timeout_s, self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # As asyncio.timeout does: a cancellation that came from elsewhere as well goes on.
        if (
            self._has_stalled
            and self._task.uncancel() <= self._num_cancellations
            and kind is asyncio.CancelledError
        ):
            raise WriteStallError("the stream was not read for too long; read it or cancel it") from None

    async def write(self, context: Context, message: object) -> None:
        """Send a message."""
        self._write_started_s = self._loop.time()
        await context.write(message)
        self._write_started_s = None

    def _look(self) -> None:
        now_s = self._loop.time()
        began_s = now_s if self._write_started_s is None else self._write_started_s
        if now_s - began_s >= self._timeout_s:
            self._has_stalled = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_at(began_s + self._timeout_s, self._look)
