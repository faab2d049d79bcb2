"""What a generator process is told, and what it tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from loraplex_loadtest.disturbances.schedule import Disturbance
from loraplex_loadtest.scenario import Client
from loraplex_loadtest.targets.target import Question, TargetAddress
from loraplex_loadtest.workload.plan import IntendedRequest

SNAPSHOT_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Order:
    """What one generator process is told. Picklable."""

    address: TargetAddress
    requests: tuple[IntendedRequest, ...]  # its own part
    questions: tuple[Question, ...]  # one for each request
    disturbances: tuple[Disturbance, ...]
    client: Client
    duration_s: float
    drain_s: float
    number: int  # which process
    processes: int  # of so many


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a generator is; sent while it runs."""

    at_s: float
    started: int
    ended: int
    errors: int
    tokens: int
    in_flight: int
    ttft_s: tuple[float, ...]  # of first tokens since the last snapshot
    adapters: dict[str, int]  # ended requests by adapter, in all
