"""Adapters registered, warmed and deleted as fast as a server takes them. A process of its own."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.adapter_variants import write_variant
from loraplex_client import LoraplexClient

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


def run_storm(target: str, package: Path, first: int, number: int) -> Storm:
    """Variants `first` .. `first + number` of `package`, several at a time. Raises RuntimeError if any fails.

    Its process has the lowest priority: a client's work is done on another machine.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, target, package, first, number))
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


def _serve(connection: Connection, target: str, package: Path, first: int, number: int) -> None:
    os.nice(_LOWEST_PRIORITY)
    try:
        connection.send(_storm(target, package, first, number))
    except Exception as error:
        connection.send(str(error))


def _storm(target: str, package: Path, first: int, number: int) -> Storm:
    register_s: list[float] = []
    load_s: list[float] = []
    names = [f"storm/variant-{index}" for index in range(first, first + number)]
    with (
        tempfile.TemporaryDirectory(prefix="loraplex-storm-") as scratch,
        LoraplexClient(target, timeout_s=_TIMEOUT_S) as client,
    ):
        folders = [write_variant(package, Path(scratch), index) for index in range(first, first + number)]

        def come_and_go(name: str, folder: Path) -> None:
            started_s = time.monotonic()
            client.adapters.upload(name, folder)
            register_s.append(time.monotonic() - started_s)
            started_s = time.monotonic()
            client.adapters.warm(name)
            load_s.append(time.monotonic() - started_s)
            client.adapters.delete(name)

        began_s = time.monotonic()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(come_and_go, names, folders))
        ended_s = time.monotonic()
    return Storm(began_s, ended_s, register_s, load_s)
