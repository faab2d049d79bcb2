"""A whole list of what must be refused, while streams of other adapters run: refused each, and not a token moves.

How long each takes is measured by `python -m benchmarks.refusals`.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from loraplex_client import LoraplexClient
from tests.integration.conftest import ADAPTERS, register_all
from tests.integration.live_server import LiveServer, await_idle, eventually, running_server
from tests.integration.streams import unchanged_streams
from tests.support.bad_registrations import SETTINGS, BadRegistration, all_cases

STUCK_S = (
    10.0  # far above what any machine takes, far below the budget of time, whose refusal would look alike
)
MAX_GROWTH_BYTES = 64 * 2**20  # of the front end over the whole list


@pytest.fixture(scope="module")
def bounded_server(
    tiny_base: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server whose quotas and budgets a test can meet. The default tenant is full with ADAPTERS."""
    folder = tmp_path_factory.mktemp("bounded-server")
    with running_server(tiny_base, folder, adapter_roots=packages, **SETTINGS) as live:
        register_all(live, packages)
        yield live


@pytest.fixture
def place(packages: Path) -> Iterator[Path]:
    """A folder below the server's root."""
    folder = packages / "bad-packages"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


async def test_every_bad_registration_is_refused_and_streams_of_other_adapters_keep_every_token(
    bounded_server: LiveServer, packages: Path, place: Path
) -> None:
    """Rows 5 to 15."""
    with bounded_server.client() as client:
        cases = all_cases(client, bounded_server.target, ADAPTERS, packages, place)
        listed = [(adapter.name, adapter.etag) for adapter in client.adapters.list()]
        front_end = psutil.Process(bounded_server.process.pid)

        async with unchanged_streams(bounded_server, ADAPTERS):
            bytes_before = front_end.memory_info().rss
            problems = [await asyncio.to_thread(problem, case, client) for case in cases]
            bytes_after = front_end.memory_info().rss

        assert [each for each in problems if each] == []
        assert bytes_after < bytes_before + MAX_GROWTH_BYTES
        assert [(adapter.name, adapter.etag) for adapter in client.adapters.list()] == listed
        eventually(lambda: not list((bounded_server.data_dir / "uploads").iterdir()))
        eventually(lambda: len(list((bounded_server.data_dir / "adapters").glob("?" * 64))) == len(ADAPTERS))
        await_idle(client)


def problem(case: BadRegistration, client: LoraplexClient) -> str:
    """What is wrong with its refusal; empty: nothing."""
    began_s = time.monotonic()
    refusal = case.refusal(client)
    took_s = time.monotonic() - began_s
    return case.problem_of(refusal) or (f"{case.title} took {took_s:.1f} s" if took_s > STUCK_S else "")
