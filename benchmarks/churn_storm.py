"""Adapters registered, warmed, evicted and deleted as fast as a server takes them. A process of its own."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from loraplex_client import LoraplexClient

Source = Literal["upload", "folder"]
"""How packages come to the server: over the wire, or named as folders that it reads itself."""

NUM_KEPT = 8  # of the last newcomers; each that goes has been pushed out of its slot by those behind it
_LOWEST_PRIORITY = 19
_AT_ONCE = 5  # clients that register at the same time
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Storm:
    """What a storm took. Moments of CLOCK_MONOTONIC, durations in seconds."""

    began_s: float
    ended_s: float
    register_s: list[float]  # from the first byte sent until the version is registered
    load_s: list[float]  # from asking for it until it is in its slot
    kept: list[str]  # names of what is still registered, oldest first


def run_storm(target: str, newcomers: Sequence[Path], first: int, source: Source) -> Storm:
    """Register packages as number `first` and so on, several at a time. Raises RuntimeError if any fails.

    Its process has the lowest priority: a client's work is done on another machine.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, target, newcomers, first, source))
    process.start()
    try:
        if not ours.poll(_TIMEOUT_S):
            raise RuntimeError("the storm did not end")
        result = ours.recv()
    finally:
        process.kill()
        process.join()
    if not isinstance(result, Storm):
        raise RuntimeError(f"the storm failed: {result}")
    return result


def _serve(
    connection: Connection, target: str, newcomers: Sequence[Path], first: int, source: Source
) -> None:
    os.nice(_LOWEST_PRIORITY)
    try:
        connection.send(_storm(target, newcomers, first, source))
    except Exception as error:
        connection.send(str(error))


def _storm(target: str, newcomers: Sequence[Path], first: int, source: Source) -> Storm:
    register_s: list[float] = []
    load_s: list[float] = []
    present: deque[str] = deque()
    names = [f"storm/variant-{first + index}" for index in range(len(newcomers))]
    with LoraplexClient(target, timeout_s=_TIMEOUT_S) as client:

        def come(name: str, package: Path) -> None:
            started_s = time.monotonic()
            if source == "upload":
                client.adapters.upload(name, package)
            else:
                client.adapters.create(name, package)
            register_s.append(time.monotonic() - started_s)
            started_s = time.monotonic()
            client.adapters.warm(name)
            load_s.append(time.monotonic() - started_s)
            present.append(name)
            if len(present) > NUM_KEPT:
                client.adapters.delete(present.popleft())

        began_s = time.monotonic()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(come, names, newcomers))
        ended_s = time.monotonic()
    return Storm(began_s, ended_s, register_s, load_s, list(present))
