"""A measured system, in a spawned process of its own so that thread pools and memory do not mix."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Protocol

from benchmarks.workload import Run, Work

Facts = dict[str, str | int | float]
"""What a subject says of itself: versions, threads, bytes."""

_STOP_TIMEOUT_S = 20.0


class SubjectError(Exception):
    """A subject could not start or failed while it ran; the message holds its traceback."""


class Subject(Protocol):
    """Does a Work and says how long that took. Built in its own process, used from its main thread."""

    def facts(self) -> Facts: ...

    def run(self, work: Work) -> Run: ...

    def close(self) -> None: ...


class SubjectProcess:
    """The parent's side. It starts when made; `wait_until_ready` collects its facts."""

    def __init__(self, name: str, build: Callable[[], Subject]) -> None:
        """`build` is pickled and called in the new process."""
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.facts: Facts = {}
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(build, theirs), name=f"benchmark-{name}")
        self._process.start()
        theirs.close()

    def __enter__(self) -> SubjectProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.is_alive():
            try:
                self._connection.send(None)
            except OSError:
                self._process.terminate()
        self._process.join(_STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def wait_until_ready(self) -> None:
        """Raises SubjectError if it could not be built."""
        facts = self._receive()
        assert isinstance(facts, dict)
        self.facts = facts

    def run(self, work: Work) -> Run:
        """Do the work now. Raises SubjectError."""
        self._connection.send(work)
        result = self._receive()
        assert isinstance(result, Run)
        return result

    def _receive(self) -> Facts | Run:
        try:
            answer: Facts | Run | SubjectError = self._connection.recv()
        except EOFError:
            raise SubjectError(f"{self.name}: its process died") from None
        if isinstance(answer, SubjectError):
            raise SubjectError(f"{self.name}: {answer}")
        return answer


def _serve(build: Callable[[], Subject], connection: Connection) -> None:
    """Runs in the spawned process: build, then one Run for every Work until None comes or the parent is gone."""
    try:
        started_s = time.monotonic()
        gc.disable()  # nothing of what imports make is garbage, and looking for it is a fifth of their time
        subject = build()
        gc.enable()
        connection.send({"load_seconds": round(time.monotonic() - started_s, 1), **subject.facts()})
    except Exception:
        connection.send(SubjectError(traceback.format_exc()))
        return
    try:
        while (work := connection.recv()) is not None:
            try:
                connection.send(subject.run(work))
            except Exception:
                connection.send(SubjectError(traceback.format_exc()))
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the parent is gone, or stops
    finally:
        subject.close()
        connection.close()
        os._exit(0)  # to take libraries apart would be a second of each process
