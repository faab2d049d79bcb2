"""Residencies of adapters, shared by the files that test them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from loraplex_server.engine.adapter_arena import AdapterArena
from loraplex_server.engine.adapter_residency import AdapterResidency
from loraplex_server.engine.host_cache import HostCache
from tests.unit.engine.residency_case import UNIT, Packages, make_arena


@pytest.fixture
def packages() -> Packages:
    return Packages()


@pytest.fixture
def build(packages: Packages) -> Iterator[Callable[..., AdapterResidency]]:
    built: list[AdapterResidency] = []

    def build(
        num_slots: int = 2, arena: AdapterArena | None = None, *, host_units: int = 16, copy_units: int = 8
    ) -> AdapterResidency:
        cache = HostCache(host_units * UNIT, torch.float32, pin_memory=False)
        memory = arena or make_arena()
        built.append(
            AdapterResidency(num_slots, memory, cache, packages.read, copy_bytes=copy_units * UNIT * 4)
        )
        return built[-1]

    yield build
    packages.may_read.set()
    for residency in built:
        residency.close()
