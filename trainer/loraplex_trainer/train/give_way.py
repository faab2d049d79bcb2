"""Gives way to the server that a recipe names as `resources.yield_to`: no optimizer step while its queue is deep.

As a job beside a server does it, which its server tells of its queue; here the server is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_MAX_WAITING = 2  # requests; as the server's setting training_max_waiting has it
_MAX_PAUSE_S = 10.0  # before each step: a busy server slows a training down and does not stop it
_POLL_S = 0.2
_TIMEOUT_S = 2.0


@contextmanager
def giving_way_to(address: str) -> Iterator[Callable[[], None]]:
    """A `wait_turn` for a server at host:port, that stands while the block runs."""
    from loraplex_client import LoraplexApiError, LoraplexClient

    with LoraplexClient(address, timeout_s=_TIMEOUT_S) as client:

        def waiting() -> int:
            """Requests in its queue. A server that does not answer has nobody to give way to."""
            try:
                return client.server_info().load.waiting
            except LoraplexApiError:
                return 0

        yield lambda: wait_turn(waiting)


def wait_turn(
    waiting: Callable[[], int],
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when no more than a few requests wait, or after the longest pause."""
    until_s = now_s() + _MAX_PAUSE_S
    while waiting() > _MAX_WAITING and now_s() < until_s:
        sleep(_POLL_S)
