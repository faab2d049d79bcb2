"""The fake server, and a run against it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loraplex_loadtest.fake.law import LatencyLaw
from loraplex_loadtest.fake.process import FakeAddresses, fake_server
from loraplex_loadtest.run import Outcome, run_scenario
from loraplex_loadtest.targets.target import TargetKind
from tests.unit.loadtest.builders import scenario

LAW = LatencyLaw(first_token_s=0.05, per_token_s=0.005)
RunOnFake = Callable[..., Outcome]


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeAddresses]:
    """One that never queues."""
    with fake_server(LAW) as addresses:
        yield addresses


@pytest.fixture
def run_on_fake(fake: FakeAddresses) -> RunOnFake:
    """`run_on_fake(traffic, kind=…, **scenario keys)`; ten requests in half a second unless told otherwise."""

    def run(
        traffic: dict[str, Any] | None = None, kind: TargetKind = TargetKind.LORAPLEX, **keys: Any
    ) -> Outcome:
        usual: dict[str, Any] = {
            "arrivals": {"kind": "constant", "rate": 20, "duration_s": 0.5},
            "adapters": {"names": ["fake-01", "base"], "mix": {"kind": "round_robin"}},
            "answer": {"length": {"kind": "fixed", "tokens": 10}},
        }
        return asyncio.run(run_scenario(scenario({**usual, **(traffic or {})}, **keys), fake.target(kind)))

    return run
