"""Several processes write to one registry, and some of them die."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from loraplex_adapters.names import AdapterName
from loraplex_adapters.registry import AdapterRegistry
from loraplex_adapters.releases import EventKind, OnExisting, TrafficShare
from tests.unit.adapters.registry_processes import register_and_increment, send_one_request_often
from tests.unit.adapters.release_case import SHOP, version


def test_writes_of_two_processes_are_numbered_in_one_row_and_none_is_lost(
    registry: AdapterRegistry, database_url: str
) -> None:
    registry.register(SHOP, version(), labels={"number": "0"})

    with multiprocessing.get_context("spawn").Pool(2) as pool:
        jobs = [pool.apply_async(register_and_increment, (database_url, w, 15)) for w in ("x", "y")]
        revisions = [job.get() for job in jobs]

    assert registry.get(SHOP).labels == {"number": "30"}
    assert registry.count() == 31
    for of_one in revisions:
        assert of_one == sorted(set(of_one))
    assert sorted(revisions[0] + revisions[1]) == list(range(2, 62))
    assert [event.revision for event in registry.events(1, 100)] == list(range(2, 62))


def test_one_request_sent_twenty_times_at_once_has_one_effect(
    registry: AdapterRegistry, database_url: str
) -> None:
    registry.register(SHOP, version())

    with multiprocessing.get_context("spawn").Pool(2) as pool:
        jobs = [pool.apply_async(send_one_request_often, (database_url, s, 10)) for s in ("x", "y")]
        answers = [answer for job in jobs for answer in job.get()]

    assert len(answers) == 20
    assert all(answer == answers[0] for answer in answers)
    assert registry.get(SHOP) == answers[0]
    assert registry.revision() == 2


def test_a_reader_never_sees_half_of_a_write(registry: AdapterRegistry) -> None:
    registry.register(SHOP, version())
    is_done = threading.Event()

    def write() -> None:
        for i in range(60):
            digest = f"{i:064x}"
            registry.register(SHOP, version(digest), on_existing=OnExisting.PROMOTE, labels={"a": "b"})
            registry.split(SHOP, [TrafficShare(digest, 1)])
            registry.delete(SHOP)
            registry.register(SHOP, version())
        is_done.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not is_done.is_set() and not writer.done():
            for adapter in registry.list_page(10):
                assert adapter.served_by_name()  # every alias and share names a version that is there
                assert adapter.stable
        writer.result()


def test_what_was_acknowledged_survives_the_death_of_its_writer(
    registry: AdapterRegistry, database_url: str
) -> None:
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    acknowledged: dict[int, int] = {}
    for _ in range(4):
        first = max(acknowledged, default=-1) + 1000  # the one in between may have been written or not
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.adapters.registry_processes", database_url, str(first)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]
        assert lines[0], f"seed {seed}"
        time.sleep(dice.random() * 0.1)
        writer.kill()
        lines += writer.stdout.read().splitlines(keepends=True)
        writer.wait()
        acknowledged |= {int(i): int(r) for i, r in (line.split() for line in lines if line.endswith("\n"))}

    for i, revision in acknowledged.items():
        adapter = registry.get(AdapterName("t", f"a{i}"))
        assert (adapter.revision, adapter.labels) == (revision, {"a": "b"}), f"seed {seed}"
    # What was not acknowledged is there as a whole, or not at all.
    events = registry.events(0, 100_000)
    assert [event.revision for event in events] == list(range(1, registry.revision() + 1))
    assert {event.kind for event in events} == {EventKind.REGISTERED}
    assert len(events) == registry.count()
    assert {a.name for a in registry.list_page(100_000)} == {event.name for event in events}
