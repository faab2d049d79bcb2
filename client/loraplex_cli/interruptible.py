"""Streams that Ctrl-C may end at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

_T = TypeVar("_T")


def interruptible(stream: Iterator[_T]) -> Iterator[_T]:
    """What `stream` yields, read by a thread of its own, and no further ahead than it is asked for.

    Python raises KeyboardInterrupt in the main thread between any two instructions. Within gRPC's reading of a stream
    that leaves locks held or waits half done: the call's cancellation then waits forever, or fails with a bug's
    traceback. Here the main thread waits in a queue of C. Who leaves early ends the stream: the thread ends with it.
    """
    wanted: SimpleQueue[None] = SimpleQueue()
    read: SimpleQueue[_T | _Ended] = SimpleQueue()

    def read_on() -> None:
        while True:
            wanted.get()
            try:
                read.put(next(stream))
            except BaseException as error:
                read.put(_Ended(error))
                return

    Thread(target=read_on, name="stream-reader", daemon=True).start()
    while True:
        wanted.put(None)
        item = read.get()
        if not isinstance(item, _Ended):
            yield item
        elif isinstance(item.error, StopIteration):
            return
        else:
            raise item.error


class _Ended:
    """How the stream ended: by StopIteration or an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
